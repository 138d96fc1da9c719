# SPDX-License-Identifier: Apache-2.0
"""A door in this process with jobs that never end behind it; certificates made as the page says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.docs.page import commands, run

from sendense.common.v1.role_pb2 import Role
from sendense.hub.v1 import job_service_pb2 as pb
from sendense.hub.v1 import job_service_pb2_grpc as jobs_grpc
from sendense.hub.v1 import operator_service_pb2 as operator_pb
from sendense.hub.v1 import operator_service_pb2_grpc as operator_grpc
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, open_catalog
from sendense_hub.rpc.admission import Admission
from sendense_hub.rpc.operator_service import OperatorService

PAGE = "docs/operations.md"
SECTION = "The API for operators elsewhere"
WITHIN_S = 60.0


class Jobs(jobs_grpc.JobServiceServicer):
    """None, which never end."""

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """Nothing."""
        return pb.ListJobsResponse()

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        """Nothing either."""
        return pb.CancelJobResponse()

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        """One answer, and then nothing for ever."""
        yield pb.WatchJobResponse()
        await asyncio.Event().wait()


@dataclass
class Room:
    """What is behind the door, and who comes in."""

    catalog: Catalog
    admission: Admission
    operators: OperatorService
    port: int

    async def token(self, name: str, role: str = "viewer", **more: Any) -> str:
        request = operator_pb.CreateTokenRequest(name=name, role=Role.Value(f"ROLE_{role.upper()}"), **more)
        return (await self.operators.CreateToken(request, None)).token  # type: ignore[arg-type]

    async def revoke(self, name: str) -> None:
        kind = operator_pb.OPERATOR_KIND_TOKEN
        await self.operators.RevokeOperator(
            operator_pb.RevokeOperatorRequest(kind=kind, name=name),
            None,  # type: ignore[arg-type]
        )

    @contextlib.asynccontextmanager
    async def jobs(self, token: str) -> AsyncIterator[jobs_grpc.JobServiceStub]:
        async with rpc.connect_remote(rpc.Remote("127.0.0.1", self.port, tls=False, token=token)) as channel:
            yield jobs_grpc.JobServiceStub(channel)


@contextlib.asynccontextmanager
async def room(directory: Path) -> AsyncIterator[Room]:
    """On a port of this host, in the clear."""
    async with open_catalog(f"sqlite:///{directory / 'catalog.sqlite'}") as catalog:
        admission = Admission(catalog)
        await admission.load()
        service = OperatorService(catalog, admission)
        jobs = Jobs()  # type: ignore[abstract]  # the rest is not called
        services = [
            rpc.Service("sendense.hub.v1.JobService", jobs_grpc.add_JobServiceServicer_to_server, jobs),
            rpc.Service(
                "sendense.hub.v1.OperatorService",
                operator_grpc.add_OperatorServiceServicer_to_server,
                service,
            ),
        ]
        listener = rpc.Listener("127.0.0.1", 0)
        async with rpc.serve_operators(listener, services, admission.identify) as endpoint:
            yield Room(catalog, admission, service, int(endpoint.rpartition(":")[2]))


async def refusal(call: Any) -> SendenseError:
    """Why a call is refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return SendenseError.from_rpc(error)
    raise AssertionError("it was not refused")


def make_certificates(directory: Path) -> None:
    """ca.pem, api.pem and api.key for localhost, ada.pem and ada.key, by the commands of the page."""
    for script in commands(PAGE, SECTION):
        done = run(f"cd {directory}\n{script}", NAME="localhost")
        assert done.returncode == 0, done.stderr


def self_signed(directory: Path, name: str, days: int) -> None:
    """`name`.pem and `name`.key that nobody else has signed; valid until so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    private = directory / f"{name}.key"
    private.touch(0o600)
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
