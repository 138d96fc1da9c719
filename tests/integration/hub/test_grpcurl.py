# SPDX-License-Identifier: Apache-2.0
"""The hub's API from outside, with the real grpcurl: what works, and what a malformed request is answered."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from tests.integration.hub.grpcurl_kit import HUB, Shared, shared_api
from tests.integration.hub.kit import SSH_KEY
from tests.integration.hub.scripted_agent import MIB, backup, plan_of

from sendense.hub.v1 import job_pb2 as pb
from sendense_common import rpc

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[Shared]:
    async with shared_api() as made:
        yield made


NOBODY = "00000000-0000-4000-8000-000000000000"


async def test_ff07_grpcurl_lists_describes_and_calls(hub: Shared):
    socket = str(hub.world.paths.api_socket)
    _, services, _ = await hub.grpcurl(socket, "list")
    for name in ("Backup", "Job", "Point", "Site", "System", "Vcenter"):
        assert f"{HUB}{name}Service" in services
    _, described, _ = await hub.grpcurl(socket, "describe", HUB + "PointService")
    assert "rpc VerifyPoint" in described
    health = await hub.grpcurl("-d", "{}", socket, "grpc.health.v1.Health/Check")
    assert "SERVING" in health[1]


async def test_agents_send_spans_in_messages_of_a_mebibyte_at_the_most(hub: Shared):
    async with rpc.connect(hub.world.paths.telemetry_socket) as channel:
        export = TraceServiceStub(channel).Export  # type: ignore[no-untyped-call]
        request = trace_pb.ExportTraceServiceRequest()
        await export(request, timeout=30)
        request.resource_spans.add(schema_url="x" * (1 << 20))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await export(request, timeout=30)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_points_and_jobs_are_listed_in_pages(hub: Shared):
    seen: list[str] = []
    token = ""
    for _ in range(3):
        (page,) = await hub.answer("PointService/ListPoints", {"page_size": 1, "page_token": token})
        seen += [point["point_id"] for point in page["points"]]
        token = page.get("next_page_token", "")
    assert seen == hub.points[::-1]
    assert token == ""
    (page,) = await hub.answer("JobService/ListJobs", {"page_size": 2, "state": "JOB_STATE_SUCCEEDED"})
    (rest,) = await hub.answer("JobService/ListJobs", {"page_token": page["next_page_token"]})
    assert len({job["job_id"] for job in [*page["jobs"], *rest["jobs"]]}) == 3


async def test_a_job_and_a_point_are_named_by_a_prefix(hub: Shared):
    (answer,) = await hub.answer("JobService/GetJob", {"job_id": hub.job_id[:6]})
    assert answer["job"]["job_id"] == hub.job_id
    (answer,) = await hub.answer("PointService/GetPoint", {"point_id": hub.points[0][:8]})
    assert answer["point"]["dependant_point_ids"] == [hub.points[1]]
    (answer,) = await hub.answer("JobService/WatchJob", {"job_id": hub.job_id})
    assert answer["job"]["state"] == "JOB_STATE_SUCCEEDED"


async def test_the_same_request_again_is_the_same_job(hub: Shared):
    request = {"request_id": str(uuid.uuid4()), "vm": "web", "mode": "BACKUP_MODE_INCREMENTAL"}
    hub.world.agent.script = backup({}, plan_of(vm_instance_uuid="none of ours"))
    answers = [await hub.answer("BackupService/StartBackup", request) for _ in range(3)]
    assert len({answer["job"]["job_id"] for (answer,) in answers}) == 1
    ended = await hub.api.ended(answers[0][0]["job"]["job_id"])
    assert ended.state == pb.JOB_STATE_FAILED


VCENTER = {
    "name": "other",
    "host": "vc.example",
    "credential_id": "c",
    "certificate_sha256": base64.b64encode(bytes(32)).decode(),
}
UUID = "b2f5ff47-4366-4b1c-8d5c-5f0e4d3d6a57"
HUGE_TOKEN = base64.urlsafe_b64encode(b"9" * 40 + b" x").decode()
NEGATIVE_TOKEN = base64.urlsafe_b64encode(b"-1 x").decode()


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("BackupService/StartBackup", {}, "request_id"),
        ("BackupService/StartBackup", {"request_id": "x", "vm": "web"}, "request_id"),
        ("BackupService/StartBackup", {"request_id": UUID}, "vm"),
        ("BackupService/StartBackup", {"request_id": UUID, "vm": "w" * 257}, "vm"),
        ("BackupService/StartBackup", {"request_id": UUID, "vm": "a\nb"}, "vm"),
        ("BackupService/StartBackup", {"request_id": UUID, "vm": "web", "mode": 77}, "mode"),
        ("BackupService/StartBackup", {"request_id": UUID, "vm": "web", "quiesce": -1}, "quiesce"),
        ("JobService/GetJob", {}, "job_id"),
        ("JobService/WatchJob", {}, "job_id"),
        ("JobService/CancelJob", {"job_id": "\u0000"}, "job_id"),
        ("JobService/LimitJob", {}, "job_id"),
        ("JobService/LimitJob", {"job_id": UUID, "bytes_per_second": 1}, "bytes_per_second"),
        ("JobService/GetJobTrace", {}, "job_id"),
        ("JobService/ListJobs", {"page_size": -1}, "page_size"),
        ("JobService/ListJobs", {"page_size": 1001}, "page_size"),
        ("JobService/ListJobs", {"page_token": "é"}, "page_token"),
        ("JobService/ListJobs", {"page_token": "AAAA"}, "page_token"),
        ("JobService/ListJobs", {"page_token": HUGE_TOKEN}, "page_token"),
        ("JobService/ListJobs", {"page_token": NEGATIVE_TOKEN}, "page_token"),
        ("JobService/ListJobs", {"state": 99}, "state"),
        ("PointService/ListPoints", {"page_size": -2147483648}, "page_size"),
        ("PointService/ListPoints", {"page_token": "a"}, "page_token"),
        ("PointService/GetPoint", {}, "point_id"),
        ("PointService/VerifyPoint", {}, "point_id"),
        ("PointService/DeletePoint", {}, "point_id"),
        ("PointService/ExportDisk", {"output_path": "/tmp/x"}, "format"),
        ("PointService/ExportDisk", {"format": 9, "output_path": "/tmp/x"}, "format"),
        ("PointService/ExportDisk", {"format": 1}, "output_path"),
        ("PointService/ExportDisk", {"format": 1, "output_path": "relative/x"}, "output_path"),
        ("PointService/ExportDisk", {"format": 1, "output_path": "/"}, "output_path"),
        ("PointService/ExportDisk", {"format": 1, "output_path": "/tmp/a\u0000b"}, "output_path"),
        ("PointService/ExportDisk", {"format": 1, "output_path": "/tmp/" + "x" * 5000}, "output_path"),
        ("SiteService/RegisterSite", {"name": "Site A", "ssh_public_key": SSH_KEY}, "name"),
        ("SiteService/RegisterSite", {"name": "b", "ssh_public_key": "ssh-rsa AAAA"}, "ssh_public_key"),
        ("SiteService/RegisterSite", {"name": "b", "ssh_public_key": "ssh-ed25519 é"}, "ssh_public_key"),
        ("SiteService/RegisterSite", {"name": "b", "ssh_public_key": SSH_KEY[:-8]}, "ssh_public_key"),
        ("VcenterService/AddVcenter", {}, "vcenter.name"),
        ("VcenterService/AddVcenter", {"vcenter": {**VCENTER, "port": 65536}}, "vcenter.port"),
        ("VcenterService/AddVcenter", {"vcenter": {**VCENTER, "port": -1}}, "vcenter.port"),
        (
            "VcenterService/AddVcenter",
            {"vcenter": {**VCENTER, "certificate_sha256": "AAAA"}},
            "vcenter.certificate_sha256",
        ),
        (
            "VcenterService/AddVcenter",
            {"vcenter": {"name": "o", "host": "h", "credential_id": "c"}},
            "vcenter.trust",
        ),
        *(
            (
                "VcenterService/AddVcenter",
                {"vcenter": {"name": "o", "host": "h", "credential_id": "c", "ca_pem": pem}},
                "vcenter.ca_pem",
            )
            for pem in ("", " ", "é", "-----BEGIN CERTIFICATE-----")
        ),
        ("VcenterService/RemoveVcenter", {}, "name"),
        ("VcenterService/NotePasswordChange", {}, "name"),
        ("VcenterService/CheckVirtualMachine", {}, "vm"),
        ("VcenterService/CheckVirtualMachine", {"vm": "x" * 300}, "vm"),
    ],
)
async def test_a_malformed_request_is_refused_and_names_its_field(
    hub: Shared, method: str, request_: Any, field: str
):
    code, reason, metadata = await hub.refused(method, request_)
    assert (code, reason, metadata["field"]) == ("InvalidArgument", "INVALID_REQUEST", field)


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("JobService/GetJob", {"job_id": NOBODY}, "NotFound", "JOB_NOT_FOUND"),
        ("JobService/WatchJob", {"job_id": "%%%%%%"}, "NotFound", "JOB_NOT_FOUND"),
        ("JobService/CancelJob", {"job_id": NOBODY}, "NotFound", "JOB_NOT_FOUND"),
        ("JobService/LimitJob", {"job_id": NOBODY}, "NotFound", "JOB_NOT_FOUND"),
        ("PointService/GetPoint", {"point_id": "______"}, "NotFound", "POINT_NOT_FOUND"),
        ("PointService/VerifyPoint", {"point_id": NOBODY}, "NotFound", "POINT_NOT_FOUND"),
        ("PointService/DeletePoint", {"point_id": NOBODY}, "NotFound", "POINT_NOT_FOUND"),
        (
            "PointService/ExportDisk",
            {"point_id": NOBODY, "format": 1, "output_path": "/tmp/x"},
            "NotFound",
            "POINT_NOT_FOUND",
        ),
        ("BackupService/StartBackup", {"request_id": UUID, "vm": "gone"}, "NotFound", "VM_NOT_FOUND"),
        (
            "BackupService/StartBackup",
            {"request_id": UUID, "vm": "web", "vcenter_name": "none"},
            "NotFound",
            "VCENTER_NOT_FOUND",
        ),
        (
            "BackupService/StartBackup",
            {"request_id": UUID, "vm": "web", "repository_name": "none"},
            "NotFound",
            "REPOSITORY_NOT_FOUND",
        ),
        ("VcenterService/TestVcenter", {"name": "none"}, "NotFound", "VCENTER_NOT_FOUND"),
        ("VcenterService/NotePasswordChange", {"name": "none"}, "NotFound", "VCENTER_NOT_FOUND"),
        ("VcenterService/CheckVirtualMachine", {"vm": "none"}, "NotFound", "VM_NOT_FOUND"),
        (
            "VcenterService/AddVcenter",
            {"vcenter": {**VCENTER, "name": "vc"}},
            "AlreadyExists",
            "VCENTER_EXISTS",
        ),
        (
            "VcenterService/AddVcenter",
            {"vcenter": {**VCENTER, "site_name": "none"}},
            "NotFound",
            "SITE_NOT_FOUND",
        ),
        (
            "SiteService/RegisterSite",
            {"name": "site-b", "ssh_public_key": SSH_KEY},
            "AlreadyExists",
            "SITE_EXISTS",
        ),
    ],
)
async def test_what_does_not_exist_or_exists_is_told_by_its_reason(
    hub: Shared, method: str, request_: Any, code: str, reason: str
):
    assert (await hub.refused(method, request_))[:2] == (code, reason)


@pytest.mark.parametrize("call", ["CancelJob", "LimitJob"])
async def test_an_ended_job_cannot_be_cancelled_or_limited(hub: Shared, call: str):
    code, reason, metadata = await hub.refused(f"JobService/{call}", {"job_id": hub.job_id})
    assert (code, reason, metadata["job"]) == ("FailedPrecondition", "JOB_ENDED", hub.job_id)


async def test_requests_of_wrong_types_and_sizes_do_not_reach_the_services(hub: Shared):
    for request in ('{"job_id": 5}', '{"no_such_field": 1}', '{"job_id": "x"', "[]"):
        code, _, _ = await hub.call("JobService/GetJob", request)
        assert code != 0, request
    large = {"job_id": "x" * (17 * MIB)}
    assert (await hub.refused("JobService/GetJob", large))[0] == "ResourceExhausted"
    code, _, errors = await hub.call("JobService/NoSuchMethod", {})
    assert code != 0, errors
