# SPDX-License-Identifier: Apache-2.0
"""Damaged points: nothing wrong is given out, and what is damaged is named; nothing else is called so."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import nbd
import pytest
from tests.integration.repository.kit import BLOCK_BYTES, MACHINE, VCENTER, make_point
from tests.integration.repository.test_points import (
    CAPACITIES,
    FULL,
    SMALL,
    _guest_offset_in_file,
    chain_of_two,
    digests,
    parts_beside,
)

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository import (
    PointDocument,
    Repository,
    disk_export,
    export_disk,
    layer_header,
    layers,
    open_repository,
    programs,
)
from sendense_hub.repository import export as exports
from sendense_hub.repository.export import open_export
from sendense_hub.repository.layout import DOCUMENT
from sendense_hub.repository.output_check import check_output
from sendense_hub.repository.programs import Outcome

pytestmark = pytest.mark.integration


@pytest.fixture
async def repository(tmp_path: Path) -> Repository:
    (tmp_path / "unfinished").mkdir()
    return await open_repository("default", tmp_path / "repository")


async def export(
    repository: Repository,
    point: PointDocument,
    key: int,
    output: Path,
    run_dir: Path | None,
    form: str = "raw",
) -> None:
    made = export_disk(repository, point, key, form, output, run_dir=run_dir, parts=parts_beside(repository))
    async with contextlib.aclosing(made) as percents:
        assert [percent async for percent in percents][-1] == 100.0


def flip(path: Path, offset: int) -> None:
    """One bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def flip_in_disk(layer: Path, offset: int) -> None:
    flip(layer, _guest_offset_in_file(layer, offset))


async def refused(
    repository: Repository, point: PointDocument, key: int, run_dir: Path, tmp_path: Path, form: str = "raw"
) -> SendenseError:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SendenseError) as error:
        await export(repository, point, key, tmp_path / "out", run_dir, form)
    assert sorted(tmp_path.iterdir()) == before, "nothing is left as if it were good"
    return error.value


# In 2000, the first block is a record of the full, of which the second point replaced 64 KiB at 64 KiB.
@pytest.mark.parametrize(("offset", "record"), [(4 * BLOCK_BYTES + 5, 4 * BLOCK_BYTES), (5, 0)])
@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk"])
async def test_a_flipped_bit_is_never_exported_and_is_named(
    repository: Repository, short_tmp: Path, tmp_path: Path, offset: int, record: int, form: str
) -> None:
    first, second, _, now = await chain_of_two(repository, short_tmp)
    flip_in_disk(repository.layer_path(first, 2000), offset)
    for point in (first, second):
        error = await refused(repository, point, 2000, short_tmp, tmp_path, form)
        assert error.reason == Reason.REASON_POINT_CORRUPT
        assert error.metadata == {"point": first.point_id, "disk": "2000", "offset": str(record)}
    await export(repository, second, 2000, tmp_path / "asked", None)
    now[2000][offset] ^= 1
    assert (tmp_path / "asked").read_bytes() == now[2000], "whoever wants it all the same can have it"
    await export(repository, second, 2001, tmp_path / "other", short_tmp)
    assert (tmp_path / "other").read_bytes() == now[2001]
    assert list(short_tmp.iterdir()) == []


async def test_data_that_nobody_wrote_is_not_exported(
    repository: Repository, short_tmp: Path, tmp_path: Path
) -> None:
    first = await make_point(repository, short_tmp, FULL, capacities=CAPACITIES)
    layer = repository.layer_path(first, 2001)
    export_ = await open_export(layer, "e", short_tmp / "e.sock", capacity_bytes=SMALL, connections=1)
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(export_.uri)
    handle.pwrite(b"\7" * 512, 2 * BLOCK_BYTES)
    handle.shutdown()
    await export_.stop()
    error = await refused(repository, first, 2001, short_tmp, tmp_path)
    assert error.reason == Reason.REASON_POINT_CORRUPT
    assert error.metadata["offset"] == str(2 * BLOCK_BYTES)


async def test_a_copy_that_went_wrong_by_itself_is_not_taken_for_damage_of_the_point(
    repository: Repository, short_tmp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _, _ = await chain_of_two(repository, short_tmp)

    async def after_a_flip(chain: Any, copy: Path, *rest: Any) -> AsyncGenerator[float, None]:
        flip(copy, 4 * BLOCK_BYTES + 5)
        async for share in check_output(chain, copy, *rest):
            yield share

    monkeypatch.setattr(disk_export, "check_output", after_a_flip)
    for point in (first, second):
        error = await refused(repository, point, 2000, short_tmp, tmp_path)
        assert error.reason == Reason.REASON_OUTPUT_UNWRITABLE
        assert error.metadata["offset"] == str(4 * BLOCK_BYTES)
        assert "the point itself is right" in error.message


async def test_ff33_a_changed_byte_of_nvram_or_configuration_is_found(
    repository: Repository, short_tmp: Path
) -> None:
    first, second, _, _ = await chain_of_two(repository, short_tmp)
    document = repository.root / VCENTER / MACHINE / first.point_id / DOCUMENT
    good = document.read_bytes()
    for old, new in ((b"AG52cmFt", b"AG52cmF1"), (b"w\xc3\xa9b", b"w\xc3\xa8b"), (b'"web"', b'"wed"')):
        assert old in good
        document.write_bytes(good.replace(old, new, 1))
        with pytest.raises(SendenseError) as error:
            repository.read_document(f"{VCENTER}/{MACHINE}/{first.point_id}")
        assert error.value.reason == Reason.REASON_POINT_CORRUPT
        assert error.value.metadata["point"] == first.point_id
        with pytest.raises(SendenseError) as above:
            await digests(repository, second, short_tmp)
        assert above.value.reason == Reason.REASON_POINT_CORRUPT
        assert above.value.metadata == {"point": first.point_id}
    document.unlink()
    with pytest.raises(SendenseError) as gone:
        await digests(repository, second, short_tmp)
    assert gone.value.reason == Reason.REASON_POINT_CORRUPT
    assert "disk 2000 of point" in gone.value.message
    document.write_bytes(good)
    assert repository.read_document(f"{VCENTER}/{MACHINE}/{first.point_id}") == first


@pytest.mark.parametrize("name", ["../other.qcow2", "/etc/passwd", "..", "", "a\0b"])
@pytest.mark.parametrize("field", ["layer_file", "ledger_file"])
async def test_a_document_names_no_file_outside_its_directory(
    repository: Repository, short_tmp: Path, name: str, field: str
) -> None:
    first = await make_point(repository, short_tmp, {}, capacities={2000: SMALL})
    (disk,) = first.disks
    renamed = dataclasses.replace(disk, **{field: name})  # type: ignore[arg-type]
    strange = dataclasses.replace(first, disks=(renamed,))
    with pytest.raises(SendenseError, match="is not a file in the same directory"):
        PointDocument.from_json(strange.to_json(), where="x")


async def test_a_point_from_before_there_was_a_digest_is_read(
    repository: Repository, short_tmp: Path
) -> None:
    first = await make_point(repository, short_tmp, {}, capacities={2000: SMALL})
    values = json.loads(first.to_json())
    del values["content_sha256"]
    assert PointDocument.from_json(json.dumps(values).encode(), where="x") == first


async def test_a_layer_with_its_data_elsewhere_is_not_opened(
    repository: Repository, short_tmp: Path, tmp_path: Path
) -> None:
    first = await make_point(repository, short_tmp, FULL, capacities=CAPACITIES)
    layer = repository.layer_path(first, 2000)
    flip(layer, 79)
    with layer.open("r+b") as file:
        file.seek(79)
        file.write(b"\x04")  # the incompatible feature "external data file"
    error = await refused(repository, first, 2000, short_tmp, tmp_path)
    assert error.reason == Reason.REASON_POINT_CORRUPT
    assert "in another file" in error.message


@pytest.mark.parametrize(
    ("code", "words", "damaged"),
    [
        (1, "qemu-img: Could not open 'x': Permission denied", False),
        (1, "qemu-img: Could not allocate: Cannot allocate memory", False),
        (-9, "", False),
        (1, "qemu-img: Could not open 'x': qcow2: L1 table is too small", True),
        (2, "2 errors were found on the image.", True),
    ],
)
async def test_a_check_that_did_not_work_is_not_called_damage(
    monkeypatch: pytest.MonkeyPatch, code: int, words: str, damaged: bool
) -> None:
    async def run(*_: str) -> Outcome:
        return Outcome(code, b"", words)

    monkeypatch.setattr(programs, "run", run)
    if damaged:
        assert words in await layers.check_structure(Path("x"))
    else:
        with pytest.raises(SendenseError) as error:
            await layers.check_structure(Path("x"))
        assert error.value.reason == Reason.REASON_REPOSITORY_UNAVAILABLE


async def test_a_layer_that_may_not_be_read_is_not_called_damaged(
    repository: Repository, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await make_point(repository, short_tmp, {}, capacities={2000: SMALL})

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(layer_header, "read", denied)
    with pytest.raises(SendenseError) as error:
        await digests(repository, first, short_tmp)
    assert error.value.reason == Reason.REASON_REPOSITORY_UNAVAILABLE


async def test_trying_out_what_is_fastest_leaves_points_alone_and_may_happen_twice_at_once(
    repository: Repository, short_tmp: Path
) -> None:
    first = await make_point(repository, short_tmp, {}, capacities={2000: SMALL})
    directory = repository.layer_path(first, 2000).parent
    seen: list[str] = []
    real = layers.create

    async def create(path: Path, *rest: Any) -> None:
        seen.append(str(path.parent))
        await real(path, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layers, "create", create)
        ways = await asyncio.gather(exports._probe(directory), exports._probe(directory))
    assert ways[0] == ways[1]
    assert seen == [str(repository.root)] * 2
    assert list(repository.root.glob(".probe*")) == []
