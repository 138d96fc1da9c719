# SPDX-License-Identifier: Apache-2.0
"""The hub's API from outside, with the real grpcurl: what works, and what a malformed request is answered."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.integration.hub.kit import SSH_KEY, Api, World, api_of, qemu_nbd_of, until, world
from tests.integration.hub.scripted_agent import CAPACITY, MIB, backup, incremental, plan_of
from tests.integration.hub.test_backups import FIRST, THEN, sha256
from tests.integration.repository.kit import noise
from tests.integration.repository.test_points import _guest_offset_in_file

from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

HUB = "sendense.hub.v1."
LAST = {2000: {2 * MIB: noise(5, 4096)}}
NOBODY = "00000000-0000-4000-8000-000000000000"


@dataclass
class Shared:
    """One API for all tests here, with a chain of three points; nobody may change what it holds."""

    api: Api
    world: World
    points: list[str]
    job_id: str

    async def call(self, method: str, request: Any = None, *options: str) -> tuple[int, str, str]:
        """Exit code, output and errors of grpcurl."""
        text = request if isinstance(request, str) else json.dumps(request or {})
        return await self.grpcurl(
            "-d", "@", *options, str(self.world.paths.api_socket), HUB + method, data=text
        )

    async def grpcurl(self, *arguments: str, data: str = "") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("grpcurl")),
            *("-plaintext", "-unix", "-max-time", "40", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate(data.encode())
        return process.returncode or 0, output.decode(), errors.decode()

    async def answer(self, method: str, request: Any = None) -> list[Any]:
        """All messages of a call that works."""
        code, output, errors = await self.call(method, request)
        assert code == 0, errors
        decoder, found, rest = json.JSONDecoder(), [], output.strip()
        while rest:
            message, end = decoder.raw_decode(rest)
            found.append(message)
            rest = rest[end:].strip()
        return found

    async def refused(self, method: str, request: Any) -> tuple[str, str, dict[str, str]]:
        """gRPC code, reason and metadata of a call that does not."""
        code, output, errors = await self.call(method, request)
        assert code != 0, output
        grpc_code = re.search(r"Code: (\w+)", errors)
        assert grpc_code, errors
        details = re.search(r"1\)\s*(\{.*\})", errors, re.DOTALL)
        info = json.loads(details[1]) if details else {}
        assert info.get("domain", "sendense") == "sendense"
        return grpc_code[1], info.get("reason", ""), info.get("metadata", {})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[Shared]:
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    async with world(directory) as made, api_of(made) as api:
        await api.register()
        points = []
        for script in (
            backup(FIRST, plan_of()),
            backup(THEN, plan_of(incremental())),
            backup(LAST, plan_of(incremental())),
        ):
            made.agent.script = script
            ended = await api.ended((await api.start_backup()).job_id)
            assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
            points.append(ended.point_id)
        yield Shared(api, made, points, ended.job_id)
        assert api.process.returncode is None, "no request has ended the API"
        found = await api.points.ListPoints(point_service_pb2.ListPointsRequest())
        assert sorted(point.point_id for point in found.points) == sorted(points), (
            "no request has lost a point"
        )
    shutil.rmtree(directory)


async def test_field_07_grpcurl_lists_describes_and_calls(hub: Shared):
    socket = str(hub.world.paths.api_socket)
    _, services, _ = await hub.grpcurl(socket, "list")
    for name in ("Backup", "Job", "Point", "Site", "System", "Vcenter"):
        assert f"{HUB}{name}Service" in services
    _, described, _ = await hub.grpcurl(socket, "describe", HUB + "PointService")
    assert "rpc VerifyPoint" in described
    health = await hub.grpcurl("-d", "{}", socket, "grpc.health.v1.Health/Check")
    assert "SERVING" in health[1]


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


async def test_an_ended_job_cannot_be_cancelled(hub: Shared):
    code, reason, metadata = await hub.refused("JobService/CancelJob", {"job_id": hub.job_id})
    assert (code, reason, metadata["job"]) == ("FailedPrecondition", "JOB_ENDED", hub.job_id)


async def test_requests_of_wrong_types_and_sizes_do_not_reach_the_services(hub: Shared):
    for request in ('{"job_id": 5}', '{"no_such_field": 1}', '{"job_id": "x"', "[]"):
        code, _, _ = await hub.call("JobService/GetJob", request)
        assert code != 0, request
    large = {"job_id": "x" * (17 * MIB)}
    assert (await hub.refused("JobService/GetJob", large))[0] == "ResourceExhausted"
    code, _, errors = await hub.call("JobService/NoSuchMethod", {})
    assert code != 0, errors


@pytest.mark.parametrize(("number", "form"), [(1, "raw"), (2, "qcow2"), (3, "vmdk")])
async def test_field_25_an_exported_disk_holds_every_byte(
    hub: Shared, tmp_path: Path, number: int, form: str
):
    image = tmp_path / "expected.raw"
    raw = bytearray(CAPACITY)
    for writes in (FIRST[2000], THEN[2000], LAST[2000]):
        for offset, data in writes.items():
            raw[offset : offset + len(data)] = data
    image.write_bytes(raw)
    output = tmp_path / f"disk.{form}"
    request = {"point_id": hub.points[2], "disk_key": 2000, "format": number, "output_path": str(output)}
    answers = await hub.answer("PointService/ExportDisk", request)
    assert (answers[-1]["done"], answers[-1]["percent"]) == (True, 100)
    assert int(answers[-1]["file_bytes"]) == output.stat().st_size
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", form, "-F", "raw", str(output), str(image)],
        capture_output=True,
        check=False,
    )
    assert compared.returncode == 0, compared.stdout + compared.stderr
    if form == "qcow2":
        subprocess.run(["qemu-img", "check", str(output)], check=True, capture_output=True)
    (layer,) = hub.world.paths.state.glob(f"repository/*/*/{hub.points[2]}/*.qcow2")
    subprocess.run(["qemu-img", "check", str(layer)], check=True, capture_output=True)
    subprocess.run(
        ["qemu-img", "compare", "-f", "qcow2", "-F", form, str(layer), str(output)],
        check=True,
        capture_output=True,
    )


async def test_an_export_never_overwrites_nor_goes_where_the_hub_keeps_things(hub: Shared, tmp_path: Path):
    taken, inside = tmp_path / "taken", tmp_path / "repository"
    taken.write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    inside.symlink_to(hub.world.paths.state / "repository")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)

    def request(path: Path | str) -> dict[str, Any]:
        return {"point_id": hub.points[0], "disk_key": 2000, "format": 1, "output_path": str(path)}

    for path, code, reason in (
        (taken, "AlreadyExists", "OUTPUT_EXISTS"),
        (tmp_path, "AlreadyExists", "OUTPUT_EXISTS"),
        (tmp_path / "dangling", "AlreadyExists", "OUTPUT_EXISTS"),
        (tmp_path / "no" / "directory", "FailedPrecondition", "OUTPUT_UNWRITABLE"),
        (taken / "x", "FailedPrecondition", "OUTPUT_UNWRITABLE"),
        (tmp_path / ("n" * 300), "FailedPrecondition", "OUTPUT_UNWRITABLE"),
        (inside / "disk.raw", "InvalidArgument", "INVALID_REQUEST"),
        (hub.world.paths.exports_dir / "disk.raw", "InvalidArgument", "INVALID_REQUEST"),
        (loop / "x", "InvalidArgument", "INVALID_REQUEST"),
    ):
        assert (await hub.refused("PointService/ExportDisk", request(path)))[:2] == (code, reason), path
    wrong = {**request(tmp_path / "x"), "disk_key": -1}
    assert (await hub.refused("PointService/ExportDisk", wrong))[:2] == ("NotFound", "DISK_NOT_FOUND")
    assert taken.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "loop", "repository", "taken"]


async def test_a_full_output_is_said_and_nothing_stays(hub: Shared, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)], check=True)
    try:
        request = {
            "point_id": hub.points[0],
            "disk_key": 2000,
            "format": 1,
            "output_path": f"{small}/disk.raw",
        }
        code, reason, _ = await hub.refused("PointService/ExportDisk", request)
        assert (code, reason) == ("ResourceExhausted", "OUTPUT_FULL")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_a_cancelled_export_leaves_nothing_and_no_lock(hub: Shared, tmp_path: Path):
    for delay_s in (0.0, 0.03, 0.06, 0.1):
        call = hub.api.points.ExportDisk(
            point_service_pb2.ExportDiskRequest(
                point_id=hub.points[2],
                disk_key=2000,
                format=point_service_pb2.DISK_FORMAT_RAW,
                output_path=str(tmp_path / "half" / "disk.raw"),
            )
        )
        (tmp_path / "half").mkdir()
        await asyncio.sleep(delay_s)
        if call.cancel():
            directory = tmp_path / "half"
            await until(lambda d=directory: not list(d.glob(".*")), "the part is removed")  # type: ignore[misc]
        shutil.rmtree(tmp_path / "half")
    code, reason, metadata = await hub.refused("PointService/DeletePoint", {"point_id": hub.points[1]})
    assert (code, reason) == ("FailedPrecondition", "POINT_HAS_DEPENDANTS")
    assert metadata["dependants"] == hub.points[2]


async def test_a_verified_point_tells_its_digests(hub: Shared):
    answers = await hub.answer("PointService/VerifyPoint", {"point_id": hub.points[2]})
    assert answers[-1]["done"] is True
    assert answers[-1]["read_bytes"] == answers[-1]["total_bytes"]
    (digest,) = answers[-1]["digests"]
    assert base64.b64decode(digest["sha256"]).hex() == sha256(FIRST[2000], THEN[2000], LAST[2000])
    assert qemu_nbd_of(hub.world.paths.exports_dir) == []


async def test_verify_finds_one_flipped_bit_and_names_point_disk_and_offset(hub: Shared):
    (layer,) = hub.world.paths.state.glob(f"repository/*/*/{hub.points[1]}/*.qcow2")
    place = _guest_offset_in_file(layer, MIB + 4096)

    def flip() -> None:
        with layer.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 0x10]))

    flip()
    try:
        code, reason, metadata = await hub.refused("PointService/VerifyPoint", {"point_id": hub.points[2]})
    finally:
        flip()
    assert (code, reason) == ("DataLoss", "POINT_CORRUPT")
    assert (metadata["point"], metadata["disk"]) == (hub.points[1], "2000")
    assert int(metadata["offset"]) == MIB
