# SPDX-License-Identifier: Apache-2.0
"""Which services of the API there are, and what each of them needs."""

from __future__ import annotations

from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server

from sendense.hub.v1 import (
    authorization_service_pb2_grpc,
    backup_service_pb2_grpc,
    enrolment_service_pb2_grpc,
    invitation_service_pb2_grpc,
    job_service_pb2_grpc,
    operator_service_pb2_grpc,
    point_service_pb2_grpc,
    repository_service_pb2_grpc,
    site_service_pb2_grpc,
    system_service_pb2_grpc,
    trust_service_pb2_grpc,
    vcenter_service_pb2_grpc,
)
from sendense_common import rpc
from sendense_common.paths import CredentialsPaths, HubPaths
from sendense_common.rpc.audit_log_service import served
from sendense_hub.catalog import Catalog
from sendense_hub.jobs.audit_watch import AuditWatch
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.jobs.intake import Intake
from sendense_hub.jobs.reconciliation import Reconciler
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.rpc.audit_log_service import AuditLogService
from sendense_hub.rpc.authorization_service import AuthorizationService
from sendense_hub.rpc.backup_service import BackupService
from sendense_hub.rpc.door import Door
from sendense_hub.rpc.enrolment_service import EnrolmentService
from sendense_hub.rpc.invitation_service import InvitationService
from sendense_hub.rpc.job_service import JobService
from sendense_hub.rpc.operator_service import OperatorService
from sendense_hub.rpc.point_service import PointService
from sendense_hub.rpc.repository_service import RepositoryService
from sendense_hub.rpc.site_service import SiteService
from sendense_hub.rpc.span_intake import SpanIntake
from sendense_hub.rpc.system_service import SystemService
from sendense_hub.rpc.trust_service import TrustService
from sendense_hub.rpc.vcenter_service import VcenterService


def authorization(workshop: Workshop, paths: HubPaths, credentials: CredentialsPaths) -> rpc.Service:
    """For gateways: what each key may open."""
    fixed = {"credentials": credentials.agents_socket, "telemetry": paths.telemetry_socket}
    return rpc.Service(
        "sendense.hub.v1.AuthorizationService",
        authorization_service_pb2_grpc.add_AuthorizationServiceServicer_to_server,
        AuthorizationService(workshop.catalog, workshop.exports, fixed),
    )


def span_intake(catalog: Catalog) -> rpc.Service:
    """For all processes, agents' too: takes their spans."""
    return rpc.Service(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        add_TraceServiceServicer_to_server,
        SpanIntake(catalog),
    )


def enrolment(letting_in: Enrolment) -> rpc.Service:
    """For agents that nobody knows yet."""
    return rpc.Service(
        "sendense.hub.v1.EnrolmentService",
        enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server,
        EnrolmentService(letting_in),
    )


def for_operators(
    workshop: Workshop,
    intake: Intake,
    reconciler: Reconciler,
    enrolment: Enrolment,
    watch: AuditWatch,
    paths: HubPaths,
    credentials: CredentialsPaths,
    door: Door,
) -> list[rpc.Service]:
    """For operators, at the unix socket and wherever else the door opens: one of each."""
    return [
        served(AuditLogService(watch, workshop.sites)),
        rpc.Service(
            "sendense.hub.v1.BackupService",
            backup_service_pb2_grpc.add_BackupServiceServicer_to_server,
            BackupService(intake),
        ),
        rpc.Service(
            "sendense.hub.v1.InvitationService",
            invitation_service_pb2_grpc.add_InvitationServiceServicer_to_server,
            InvitationService(enrolment, paths),
        ),
        rpc.Service(
            "sendense.hub.v1.JobService",
            job_service_pb2_grpc.add_JobServiceServicer_to_server,
            JobService(workshop.catalog, workshop.board),
        ),
        rpc.Service(
            "sendense.hub.v1.OperatorService",
            operator_service_pb2_grpc.add_OperatorServiceServicer_to_server,
            OperatorService(workshop.catalog, door.admission),
        ),
        rpc.Service(
            "sendense.hub.v1.PointService",
            point_service_pb2_grpc.add_PointServiceServicer_to_server,
            PointService(workshop),
        ),
        rpc.Service(
            "sendense.hub.v1.RepositoryService",
            repository_service_pb2_grpc.add_RepositoryServiceServicer_to_server,
            RepositoryService(workshop),
        ),
        rpc.Service(
            "sendense.hub.v1.SiteService",
            site_service_pb2_grpc.add_SiteServiceServicer_to_server,
            SiteService(workshop, enrolment),
        ),
        rpc.Service(
            "sendense.hub.v1.SystemService",
            system_service_pb2_grpc.add_SystemServiceServicer_to_server,
            SystemService(workshop, reconciler, enrolment, watch, paths, credentials, door),
        ),
        rpc.Service(
            "sendense.hub.v1.TrustService",
            trust_service_pb2_grpc.add_TrustServiceServicer_to_server,
            TrustService(workshop, intake),
        ),
        rpc.Service(
            "sendense.hub.v1.VcenterService",
            vcenter_service_pb2_grpc.add_VcenterServiceServicer_to_server,
            VcenterService(workshop, intake),
        ),
    ]
