# SPDX-License-Identifier: Apache-2.0
"""Changed block tracking that leaves out a change: found, told, mended, and trusted again by order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.kit import KIB, MIB, World, data, world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def audited(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, options=("--cbt-audit-percent", "100")) as made:
        yield made


def disk_of(job: dict[str, Any]) -> tuple[str, str]:
    (disk,) = job["disks"]
    return disk["mode"], disk["mode_reason"]


def test_rule_27_a_change_that_tracking_hides_is_found_and_nothing_is_believed_until_an_operator_says_so(
    audited: World,
):
    lab = audited.lab()
    lab.add_vm("web", [24 * MIB + 512])
    lab.write("web", 2000, 0, data(4 * MIB, "first"))
    audited.back_up("web")
    shown = audited.ask("vm", "trust", "web")
    assert [(each["trusted"], each["audited_bytes"]) for each in shown["disks"]] == [(True, "0")]

    # It hides the last change, and would hide the last area that is in use.
    lab.command("set", areas_left_out=1)
    lab.write("web", 2000, 512, data(1000, "told"))
    lab.write("web", 2000, 16 * MIB, data(5000, "hidden"))
    job = audited.back_up("web")
    assert disk_of(job) == ("incremental", "")
    (warning,) = job["warnings"]
    assert (warning["code"], warning["disk_key"]) == ("cbt_mismatch", 2000)
    assert f"byte {16 * MIB} ({64 * KIB} bytes)" in warning["message"]
    (disk,) = job["disks"]
    assert int(disk["read_bytes"]) == 64 * KIB
    assert int(disk["audited_bytes"]) == 23 * MIB + 512
    assert disk["audit_mismatches"] == "1"
    audited.assert_restores(job, lab)
    shown = audited.ask("vm", "trust", "web")
    assert [(each["trusted"], each["audit_mismatches"]) for each in shown["disks"]] == [(False, "1")]
    assert [(each["kind"], each["job_id"]) for each in shown["events"]] == [("mismatch", job["job_id"])]
    assert "vm trust web --reset --yes" in " ".join(audited.run("vm", "trust", "web").stdout.split())

    # Until all was read, it cannot be trusted again; what is read is everything.
    _, error = audited.refused("vm", "trust", "web", "--accept")
    assert error["reason"] == "NOT_READ_WHOLE"
    lab.write("web", 2000, 20 * MIB, data(5000, "hidden too"))
    job = audited.back_up("web")
    assert disk_of(job) == ("compared", "cbt_not_trusted")
    assert int(job["disks"][0]["read_bytes"]) == 24 * MIB + 512
    audited.assert_restores(job, lab)
    lab.command("set", areas_left_out=0)
    shown = audited.ask("vm", "trust", "web", "--accept")
    assert [each["trusted"] for each in shown["disks"]] == [True]
    assert disk_of(audited.back_up("web")) == ("incremental", "")

    # A reset is never done unasked, and makes vSphere forget.
    code, _ = audited.refused("vm", "trust", "web", "--reset")
    assert code == 2
    assert audited.ask("vm", "trust", "web", "--reset", "--yes")["events"][0]["kind"] == "reset_ordered"
    assert lab.state("web")["changed_block_tracking"]
    lab.write("web", 2000, 8 * MIB, data(5000, "after the reset"))
    job = audited.back_up("web")
    assert disk_of(job) == ("compared", "change_id_rejected")
    audited.assert_restores(job, lab)
    audited.assert_nothing_left((lab, "web"))
