# SPDX-License-Identifier: Apache-2.0
"""Restore points with real qemu tools."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.integration.repository.kit import BLOCK_BYTES, MACHINE, VCENTER, make_point, noise, patch

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository import (
    PartFiles,
    PointDocument,
    PointWriter,
    Record,
    Repository,
    delete_point,
    export_disk,
    layers,
    open_repository,
    verify_point,
)
from sendense_hub.repository.export import open_export
from sendense_hub.repository.verifier_process import verifier_process

pytestmark = pytest.mark.integration

# Not multiples of 64 KiB or 1 MiB: 512-byte sectors are all that a disk promises.
SMALL, LARGE = 5 * BLOCK_BYTES + 512, 9 * BLOCK_BYTES + 3 * 512
CAPACITIES = {2000: LARGE, 2001: SMALL, 2002: SMALL}

FULL = {
    2000: {
        0: noise(1, BLOCK_BYTES),
        3 * BLOCK_BYTES + 512: noise(2, 2 * BLOCK_BYTES),
        LARGE - 512: noise(3, 512),
    },
    2001: {BLOCK_BYTES: noise(4, BLOCK_BYTES)},
    2002: {0: noise(5, SMALL)},
}
CHANGED = {
    2000: {65536: noise(6, 65536), 3 * BLOCK_BYTES: bytes(BLOCK_BYTES)},
    2001: {SMALL - 512: noise(7, 512)},
}


@pytest.fixture
async def repository(tmp_path: Path) -> Repository:
    return await open_repository("default", tmp_path / "repository")


async def chain_of_two(
    repository: Repository, run: Path
) -> tuple[PointDocument, PointDocument, dict[int, bytearray], dict[int, bytearray]]:
    first = await make_point(repository, run, FULL, capacities=CAPACITIES)
    then = {key: patch(bytearray(size), FULL[key]) for key, size in CAPACITIES.items()}
    now = {key: patch(bytearray(then[key]), CHANGED.get(key, {})) for key in CAPACITIES}
    second = await make_point(repository, run, CHANGED, capacities=CAPACITIES, parent=first)
    return first, second, then, now


async def digests(repository: Repository, point: PointDocument, run: Path) -> dict[int, str]:
    found = {}
    async with contextlib.aclosing(verify_point(repository, point, run)) as reports:
        async for report in reports:
            if report.sha256:
                found[report.disk_key] = report.sha256.hex()
    return found


def parts_beside(repository: Repository) -> PartFiles:
    return PartFiles(repository.root.parent / "unfinished")


async def exported(
    repository: Repository,
    point: PointDocument,
    key: int,
    form: str,
    output: Path,
    run_dir: Path | None = None,
) -> None:
    parts = parts_beside(repository)
    made = export_disk(repository, point, key, form, output, run_dir=run_dir, parts=parts)
    async with contextlib.aclosing(made) as percents:
        last = [percent async for percent in percents][-1]
    assert last == 100.0


def qemu_img(*arguments: str) -> str:
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


async def test_both_points_of_a_chain_give_back_every_byte(
    repository: Repository, short_tmp: Path, tmp_path: Path
):
    first, second, then, now = await chain_of_two(repository, short_tmp)
    for point, images in ((first, then), (second, now)):
        expected = {key: hashlib.sha256(image).hexdigest() for key, image in images.items()}
        assert await digests(repository, point, short_tmp) == expected
        for key, image in images.items():
            for form in ("raw", "qcow2", "vmdk"):
                output = tmp_path / f"{point.point_id}-{key}.{form}"
                await exported(repository, point, key, form, output, short_tmp)
                if form == "raw":
                    assert output.read_bytes() == image
                else:
                    raw = tmp_path / f"{point.point_id}-{key}.raw"
                    qemu_img("compare", "-f", form, "-F", "raw", str(output), str(raw))
            layer = repository.layer_path(point, key)
            qemu_img("check", "-f", "qcow2", str(layer))
            qemu_img("compare", "-f", "qcow2", "-F", "raw", str(layer), str(raw))
    assert repository.read_document(f"{VCENTER}/{MACHINE}/{second.point_id}") == second


async def test_a_moved_repository_opens(repository: Repository, short_tmp: Path, tmp_path: Path):
    _, second, _, now = await chain_of_two(repository, short_tmp)
    shutil.move(repository.root, tmp_path / "elsewhere")
    moved = await open_repository("default", tmp_path / "elsewhere")
    assert moved.repository_id == repository.repository_id
    expected = {key: hashlib.sha256(image).hexdigest() for key, image in now.items()}
    assert await digests(moved, second, short_tmp) == expected


def _guest_offset_in_file(layer: Path, offset: int) -> int:
    import json

    for part in json.loads(qemu_img("map", "--output=json", str(layer))):
        if part["start"] <= offset < part["start"] + part["length"]:
            return int(part["offset"]) + offset - int(part["start"])
    raise AssertionError(f"{offset} is not in {layer}")


async def test_a_flipped_bit_is_found_and_named(repository: Repository, short_tmp: Path):
    first, second, _, _ = await chain_of_two(repository, short_tmp)
    layer = repository.layer_path(first, 2000)
    with layer.open("r+b") as file:
        file.seek(_guest_offset_in_file(layer, 4 * BLOCK_BYTES + 5))
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    for point in (first, second):
        with pytest.raises(SendenseError) as damaged:
            await digests(repository, point, short_tmp)
        assert damaged.value.reason == Reason.REASON_POINT_CORRUPT
        assert damaged.value.metadata["disk"] == "2000"
        assert damaged.value.metadata["point"] == first.point_id
        assert damaged.value.metadata["offset"] == str(4 * BLOCK_BYTES)


async def test_data_that_nobody_wrote_down_is_found(repository: Repository, short_tmp: Path):
    first = await make_point(repository, short_tmp, FULL, capacities=CAPACITIES)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 512", str(repository.layer_path(first, 2001))],
        check=True,
        capture_output=True,
    )
    with pytest.raises(SendenseError, match="nobody wrote") as damaged:
        await digests(repository, first, short_tmp)
    assert damaged.value.metadata["offset"] == str(2 * BLOCK_BYTES)


async def test_a_layer_whose_backing_was_changed_is_not_opened(
    repository: Repository, short_tmp: Path, tmp_path
):
    _, second, _, _ = await chain_of_two(repository, short_tmp)
    layer = repository.layer_path(second, 2000)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "/etc/passwd", str(layer))
    with pytest.raises(SendenseError, match="on top of '/etc/passwd'"):
        await digests(repository, second, short_tmp)
    with pytest.raises(SendenseError, match="on top of '/etc/passwd'"):
        await exported(repository, second, 2000, "raw", tmp_path / "out")
    with pytest.raises(SendenseError, match="on top of '/etc/passwd'"):
        await make_point(repository, short_tmp, {}, capacities=CAPACITIES, parent=second)


async def test_ff02_an_export_is_ready_only_with_the_right_size(repository: Repository, short_tmp: Path):
    first = await make_point(repository, short_tmp, {}, capacities={2000: SMALL})
    layer = repository.layer_path(first, 2000)
    with pytest.raises(SendenseError) as wrong:
        await open_export(layer, "e", short_tmp / "e.sock", capacity_bytes=SMALL + 512, connections=1)
    assert wrong.value.reason == Reason.REASON_DISK_MISMATCH
    with pytest.raises(SendenseError, match="No such file") as missing:
        await open_export(
            layer.with_name("gone"), "e", short_tmp / "e.sock", capacity_bytes=SMALL, connections=1
        )
    assert missing.value.reason == Reason.REASON_EXPORT_FAILED
    assert not (short_tmp / "e.sock").exists()


async def test_ff01_an_export_takes_its_connections_and_one_more(repository: Repository, short_tmp: Path):
    import nbd

    writer = await PointWriter.begin(repository, VCENTER, MACHINE, "p")
    layer = await writer.create_layer(2000, SMALL, None)
    export = await writer.open_export(layer, "e", short_tmp / "e.sock", 2)
    handles = []
    for _ in range(3):
        handle = nbd.NBD()
        handle.set_uri_allow_local_file(True)
        async with asyncio.timeout(10):
            await asyncio.to_thread(handle.connect_uri, export.uri)
        handles.append(handle)
    await writer.discard()
    assert export.exited
    assert list(repository.root.iterdir()) == [repository.root / "sendense-repository.json"]


@pytest.mark.parametrize("cut_off_at", [1, 2])
async def test_a_removal_that_is_cut_off_leaves_no_ledger_that_a_later_attempt_would_believe(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, cut_off_at: int
):
    writer = await PointWriter.begin(repository, VCENTER, MACHINE, "p")
    await writer.create_layer(2000, SMALL, None)
    await writer.append(2000, [Record(0, 4096, hashlib.sha256(bytes(4096)).digest())])
    await writer.suspend()
    unlink, calls = Path.unlink, []

    def cut_off(path: Path, missing_ok: bool = False) -> None:
        calls.append(path)
        if len(calls) == cut_off_at:
            raise OSError(errno.EIO, "cut off")
        unlink(path, missing_ok=missing_ok)

    later = await PointWriter.begin(repository, VCENTER, MACHINE, "p")
    with monkeypatch.context() as cut:
        cut.setattr(Path, "unlink", cut_off)
        with pytest.raises(SendenseError, match="cut off"):
            await later.drop_layer(2000)
    assert len(calls) == cut_off_at
    with contextlib.suppress(SendenseError):
        await later.create_layer(2000, SMALL, None)
    await later.suspend()
    later = await PointWriter.begin(repository, VCENTER, MACHINE, "p")
    assert await later.go_on_with_layer(2000, SMALL, None) is None
    await later.discard()


async def test_a_qemu_nbd_that_went_away_is_no_damage_and_may_be_tried_again(short_tmp: Path):
    layer = short_tmp / "disk.qcow2"
    await layers.create(layer, LARGE, None)
    export = await open_export(layer, "e", short_tmp / "e.sock", capacity_bytes=LARGE, connections=1)
    await export.stop()
    async with verifier_process(short_tmp) as verifier:
        with pytest.raises(SendenseError, match="went away") as gone:
            await anext(verifier.do(do="whole", uri=export.uri, ledgers=[]))
    assert (gone.value.reason, gone.value.retryable) == (Reason.REASON_EXPORT_FAILED, True)


async def test_without_the_commit_mark_there_is_no_point(repository: Repository, short_tmp: Path):
    writer = await PointWriter.begin(repository, VCENTER, MACHINE, "p")
    await writer.create_layer(2000, SMALL, None)
    with pytest.raises(SendenseError) as incomplete:
        repository.read_document(writer.directory)
    assert incomplete.value.reason == Reason.REASON_POINT_INCOMPLETE
    await writer.discard()
    await writer.discard()
    assert not (repository.root / VCENTER).exists()


async def test_ff18_delete_removes_the_files(repository: Repository, short_tmp: Path):
    first, second, _, _ = await chain_of_two(repository, short_tmp)
    directory = f"{VCENTER}/{MACHINE}/{second.point_id}"
    assert await delete_point(repository, directory) > 0
    assert not repository.point_path(directory).exists()
    assert await delete_point(repository, directory) == 0
    repository.read_document(f"{VCENTER}/{MACHINE}/{first.point_id}")


async def test_an_export_never_overwrites_and_leaves_nothing(
    repository: Repository, short_tmp: Path, tmp_path
):
    first = await make_point(repository, short_tmp, FULL, capacities=CAPACITIES)
    taken = tmp_path / "taken"
    taken.write_text("precious")
    with pytest.raises(SendenseError) as exists:
        await exported(repository, first, 2000, "raw", taken)
    assert exists.value.reason == Reason.REASON_OUTPUT_EXISTS
    assert taken.read_text() == "precious"
    with pytest.raises(SendenseError) as nowhere:
        await exported(repository, first, 2000, "raw", tmp_path / "no" / "such" / "directory")
    assert nowhere.value.reason == Reason.REASON_OUTPUT_UNWRITABLE
    with pytest.raises(SendenseError) as no_disk:
        await exported(repository, first, 4711, "raw", tmp_path / "x")
    assert no_disk.value.reason == Reason.REASON_DISK_NOT_FOUND
    async with contextlib.aclosing(
        export_disk(
            repository,
            first,
            2000,
            "raw",
            tmp_path / "half",
            run_dir=short_tmp,
            parts=parts_beside(repository),
        )
    ) as percents:
        async for _ in percents:
            break
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository", "taken", "unfinished"]


async def test_a_full_file_system_is_said_and_nothing_stays(
    repository: Repository, short_tmp: Path, tmp_path
):
    first = await make_point(repository, short_tmp, FULL, capacities=CAPACITIES)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(SendenseError) as full:
            await exported(repository, first, 2002, "raw", small / "disk.raw")
        assert full.value.reason == Reason.REASON_OUTPUT_FULL
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_a_directory_with_something_else_is_not_a_repository(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SendenseError) as refused:
        await open_repository("default", tmp_path)
    assert refused.value.reason == Reason.REASON_REPOSITORY_NOT_FOUND
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
