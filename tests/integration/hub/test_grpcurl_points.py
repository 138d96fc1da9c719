# SPDX-License-Identifier: Apache-2.0
"""Points from outside, with the real grpcurl: exported, verified, compared with stock tools."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.integration.hub.grpcurl_kit import LAST, Shared, shared_api
from tests.integration.hub.kit import qemu_nbd_of, until
from tests.integration.hub.scripted_agent import CAPACITY, MIB
from tests.integration.hub.test_backups import FIRST, THEN, sha256
from tests.integration.repository.test_points import _guest_offset_in_file

from sendense.hub.v1 import point_service_pb2

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[Shared]:
    async with shared_api() as made:
        yield made


@pytest.mark.parametrize(("number", "form"), [(1, "raw"), (2, "qcow2"), (3, "vmdk")])
async def test_ff25_an_exported_disk_holds_every_byte(hub: Shared, tmp_path: Path, number: int, form: str):
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
