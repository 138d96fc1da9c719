# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/repository-format.md, run as they stand on a repository that the hub's code made."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.integration.docs.page import commands, run, section
from tests.integration.repository.kit import BLOCK_BYTES, MACHINE, VCENTER, make_point, noise, patch

from sendense_hub.repository import DiskDocument, PointDocument, open_repository
from sendense_hub.repository.ledger import RECORD

pytestmark = pytest.mark.integration

PAGE = "docs/repository-format.md"
CAPACITY = 5 * BLOCK_BYTES + 512
# What is at 4096 is written twice: the second time replaces a part of the first.
FULL = {0: noise(1, BLOCK_BYTES), 4096: noise(5, 4096), 3 * BLOCK_BYTES + 512: noise(2, BLOCK_BYTES)}
CHANGED = {65536: noise(3, 65536), 3 * BLOCK_BYTES: bytes(BLOCK_BYTES), CAPACITY - 512: noise(4, 512)}


def restore() -> str:
    """All commands of the section, as one script."""
    blocks = commands(PAGE, "Restore with stock QEMU alone")
    assert len(blocks) == 7
    return "".join(blocks)


async def repository_of_two(root: Path, run_dir: Path) -> tuple[PointDocument, bytes, bytes]:
    """A full and an incremental: the newer point, and the disk as it was at each."""
    repository = await open_repository("default", root)
    first = await make_point(repository, run_dir, {2000: FULL}, capacities={2000: CAPACITY})
    second = await make_point(repository, run_dir, {2000: CHANGED}, capacities={2000: CAPACITY}, parent=first)
    then = patch(bytearray(CAPACITY), FULL)
    return second, bytes(then), bytes(patch(bytearray(then), CHANGED))


async def test_the_commands_of_the_page_give_the_disk_back(short_tmp: Path, tmp_path: Path):
    point, then, now = await repository_of_two(tmp_path / "repository", short_tmp)
    below = point.disks[0].parent_point_id
    for point_id, image in ((point.point_id, now), (below, then)):
        out = short_tmp / point_id[:4]
        out.mkdir()
        where = tmp_path / "repository" / VCENTER / MACHINE / point_id
        done = run(restore(), REPO=tmp_path / "repository", POINT=where, OUT=out)
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(where) in done.stdout
        assert "the disk is what the ledger says" in done.stdout
        assert (out / "disk-2000.raw").read_bytes() == image
        assert (out / "vm.nvram").read_bytes() == point.nvram
        compared = run('qemu-img compare -f vmdk -F raw "$OUT/disk-2000.vmdk" "$OUT/disk-2000.raw"', OUT=out)
        assert compared.returncode == 0, compared.stdout + compared.stderr


async def test_one_vm_can_be_taken_elsewhere_alone(short_tmp: Path, tmp_path: Path):
    point, _, now = await repository_of_two(tmp_path / "repository", short_tmp)
    copy = tmp_path / "elsewhere" / VCENTER / MACHINE
    shutil.copytree(tmp_path / "repository" / VCENTER / MACHINE, copy)
    shutil.rmtree(tmp_path / "repository")
    done = run(restore(), REPO=tmp_path / "elsewhere", POINT=copy / point.point_id, OUT=short_tmp)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (short_tmp / "disk-2000.raw").read_bytes() == now


async def test_the_commands_of_the_page_find_damage(short_tmp: Path, tmp_path: Path):
    point, _, _ = await repository_of_two(tmp_path / "repository", short_tmp)
    where = tmp_path / "repository" / VCENTER / MACHINE / point.point_id
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 512", str(where / "disk-2000.qcow2")],
        check=True,
        capture_output=True,
    )
    done = run(restore(), REPO=tmp_path / "repository", POINT=where, OUT=short_tmp)
    assert done.returncode != 0
    assert "65536 bytes at 65536 are not what was written" in done.stderr


async def test_the_page_describes_what_is_in_a_point(short_tmp: Path, tmp_path: Path):
    point, _, _ = await repository_of_two(tmp_path / "repository", short_tmp)
    where = tmp_path / "repository" / VCENTER / MACHINE / point.point_id
    assert sorted(file.name for file in where.iterdir()) == [
        "disk-2000.ledger",
        "disk-2000.qcow2",
        "point.json",
    ]
    document = json.loads((where / "point.json").read_text())
    fields = section(PAGE, "point.json")
    for text, kind in ((fields.split("Each of `disks`:")[0], PointDocument), (fields, DiskDocument)):
        described = set(re.findall(r"`([a-z0-9_]+)`", text))
        written = set(document if kind is PointDocument else document["disks"][0])
        assert written - {"content_sha256"} == set(kind.__dataclass_fields__)
        assert written <= described, f"not described: {sorted(written - described)}"
    ledger = (where / "disk-2000.ledger").read_bytes()
    assert f"{RECORD.size} bytes" in section(PAGE, "Ledgers").replace("\n", " ")
    assert len(ledger) == document["disks"][0]["ledger_bytes"]
    assert hashlib.sha256(ledger).hexdigest() == document["disks"][0]["ledger_sha256"]
