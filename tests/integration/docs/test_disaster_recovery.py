# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/disaster-recovery.md, run as they stand on a repository that the hub's code made."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
from tests.integration.docs.page import ROOT, commands, run
from tests.integration.docs.test_restore_with_stock_qemu import repository_of_two
from tests.integration.repository.kit import MACHINE, VCENTER
from tests.unit.packaging.test_commands_in_pages import parse_sendense

pytestmark = pytest.mark.integration

PAGE = "docs/disaster-recovery.md"
THEN, NOW = "2026-03-01T12:00:00", "2026-03-02T12:00:00"
MOMENTS_US = (1_772_366_400_000_000, 1_772_452_800_000_000)


def restore() -> str:
    """All commands of the section, as one script."""
    blocks = commands(PAGE, "Nothing but the repository")
    assert len(blocks) == 3
    return "".join(blocks)


async def repository(root: Path, run_dir: Path) -> tuple[Path, Path, bytes, bytes]:
    """The older and the newer point's directory, taken at THEN and NOW, and the disk at each."""
    point, then, now = await repository_of_two(root, run_dir)
    machine = root / VCENTER / MACHINE
    older, newer = machine / point.disks[0].parent_point_id, machine / point.point_id
    for place, moment_us in ((older, MOMENTS_US[0]), (newer, MOMENTS_US[1])):
        text = (place / "point.json").read_bytes()
        document = dataclasses.replace(point.from_json(text, where=""), snapshot_time_us=moment_us)
        (place / "point.json").write_bytes(document.to_json())
    return older, newer, then, now


async def test_the_commands_find_the_point_of_a_moment_and_give_its_disks(short_tmp: Path, tmp_path: Path):
    older, newer, then, now = await repository(tmp_path / "r", short_tmp)
    (tmp_path / "r" / VCENTER / MACHINE / "half").mkdir()
    for moment, place, image in (
        (THEN, older, then),
        ("2026-03-02T11:59:59", older, then),
        (NOW, newer, now),
    ):
        out = tmp_path / f"out-{moment}"
        out.mkdir()
        done = run(restore(), REPO=tmp_path / "r", VM="web", MOMENT=moment, OUT=out)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (out / "point").read_text().strip() == str(place)
        assert (out / "disk-2000.raw").read_bytes() == image
        assert done.stdout.count("whole: ") == (1 if place == older else 2)
        assert str(newer) in done.stderr, "all points of the VM are shown"


async def test_nothing_is_found_of_an_unknown_vm_or_an_earlier_moment(short_tmp: Path, tmp_path: Path):
    await repository(tmp_path / "r", short_tmp)
    for vm, moment in (("other", NOW), ("web", "2026-02-01T00:00:00")):
        assert run(restore(), REPO=tmp_path / "r", VM=vm, MOMENT=moment, OUT=tmp_path).returncode != 0


@pytest.mark.parametrize("what", ["ledger", "backing", "tables"])
async def test_the_commands_stop_at_a_chain_that_is_not_what_it_was(
    short_tmp: Path, tmp_path: Path, what: str
):
    older, newer, _, _ = await repository(tmp_path / "r", short_tmp)
    if what == "ledger":
        ledger = older / "disk-2000.ledger"
        ledger.write_bytes(ledger.read_bytes()[:-1] + b"!")
    elif what == "backing":
        command = ["qemu-img", "rebase", "-u", "-F", "raw", "-b", "/etc/passwd", "disk-2000.qcow2"]
        subprocess.run(command, cwd=newer, check=True)
    else:
        layer = older / "disk-2000.qcow2"
        content = bytearray(layer.read_bytes())
        content[0x10000:0x10100] = b"\x77" * 0x100  # the table of reference counts
        layer.write_bytes(content)
    done = run(restore(), REPO=tmp_path / "r", VM="web", MOMENT=NOW, OUT=tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "disk-2000.raw").exists()
    assert {"ledger": "not the ledger", "backing": "/etc/passwd", "tables": "qemu-img"}[what] in done.stderr


def test_the_product_s_commands_on_the_page_are_understood():
    text = (ROOT / PAGE).read_text()
    shown = re.findall(r"^sendense (.*)$", text, re.MULTILINE)
    assert len(shown) == 2
    for words in shown:
        parse_sendense(words.split())
