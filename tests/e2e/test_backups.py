# SPDX-License-Identifier: Apache-2.0
"""Full and incremental backups, restored and compared byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.kit import KIB, MIB, Lab, World, data, qemu_img

pytestmark = pytest.mark.e2e

# Neither is a multiple of 64 KiB or 1 MiB.
ODD = 40 * MIB + 3 * 512
ODDER = 24 * MIB + 63 * KIB + 512


def test_three_disks_with_one_unit_number_land_in_layers_of_their_own(
    shared_world: World, shared_lab: Lab
) -> None:
    """Also field failures 19 and 25: a name with "-disk", sizes with odd tails, paged answers."""
    lab, name = shared_lab, "web-disk-01"
    disks = [{"capacity_bytes": size, "unit_number": 0} for size in (ODD, ODD, ODDER)]
    machine = lab.add_vm(name, disks)
    for number, key in enumerate(machine.disks):
        capacity = disks[number]["capacity_bytes"]
        lab.write(name, key, number * 70 * KIB, data(3 * MIB, key))
        lab.write(name, key, capacity - 512, data(512, f"tail {key}"))
    full = shared_world.back_up(name)
    assert [(disk["key"], disk["mode"]) for disk in full["disks"]] == [(key, "full") for key in machine.disks]
    shared_world.assert_restores(full, lab)

    lab.command("set", areas_per_page=1)
    try:
        lab.write(name, machine.disks[0], 17 * MIB + 5, data(300 * KIB, "changed"))
        lab.write(name, machine.disks[1], ODD - 512, data(512, "new tail"))
        lab.zero(name, machine.disks[2], 64 * KIB, MIB)
        for number in range(20):
            lab.write(name, machine.disks[2], 2 * MIB + number * 200 * KIB, data(100, number))
        incremental = shared_world.back_up(name)
    finally:
        lab.command("set", areas_per_page=2000)
    assert {disk["mode"] for disk in incremental["disks"]} == {"incremental"}
    shared_world.assert_restores(incremental, lab)
    shared_world.assert_nothing_left((lab, name))

    assert name in shared_world.run("vm", "list").stdout
    assert name in shared_world.run("job", "list").stdout
    assert name in shared_world.run("point", "list").stdout


def test_what_was_deleted_in_the_guest_does_not_come_back(shared_world: World, shared_lab: Lab) -> None:
    lab, name = shared_lab, "trimmed"
    (key,) = lab.add_vm(name, [16 * MIB]).disks
    lab.write(name, key, 0, data(8 * MIB, "old"))
    shared_world.back_up(name)
    lab.zero(name, key, MIB, 5 * MIB)
    job = shared_world.back_up(name)
    assert job["disks"][0]["copied_bytes"] == "0"
    shared_world.assert_restores(job, lab)


def test_ff30_an_incremental_with_no_change_copies_nothing(shared_world: World, shared_lab: Lab) -> None:
    lab, name = shared_lab, "idle"
    (key,) = lab.add_vm(name, [64 * MIB]).disks
    lab.write(name, key, 0, data(MIB, "once"))
    shared_world.back_up(name)
    job = shared_world.back_up(name)
    (disk,) = job["disks"]
    assert (disk["mode"], disk["read_bytes"], disk["copied_bytes"]) == ("incremental", "0", "0")
    shared_world.assert_restores(job, lab)


def test_rule_20_full_twice_gives_two_points_that_need_nobody(shared_world: World, shared_lab: Lab) -> None:
    lab, name = shared_lab, "twice"
    (key,) = lab.add_vm(name, [16 * MIB]).disks
    lab.write(name, key, 0, data(2 * MIB, "first"))
    first = shared_world.back_up(name, "--mode", "full")
    lab.write(name, key, MIB, data(2 * MIB, "second"))
    second = shared_world.back_up(name, "--mode", "full")
    point = shared_world.ask("point", "show", second["point_id"])
    assert (point["kind"], point["disks"][0]["parent_point_id"]) == ("full", "")
    shared_world.ask("point", "delete", first["point_id"])
    shared_world.assert_restores(second, lab)


def test_a_point_that_others_are_built_on_stays(shared_world: World, shared_lab: Lab) -> None:
    lab, name = shared_lab, "chained"
    (key,) = lab.add_vm(name, [16 * MIB]).disks
    points = []
    for number in range(3):
        lab.write(name, key, number * MIB, data(MIB, number))
        points.append(shared_world.back_up(name)["point_id"])
    code, error = shared_world.refused("point", "delete", points[1])
    assert (code, error["reason"]) == (4, "POINT_HAS_DEPENDANTS")
    assert points[2] in error["message"] + str(error["metadata"])
    for point in reversed(points):
        shared_world.ask("point", "delete", point)
    left = {each["point_id"] for each in shared_world.ask("point", "list", name)["points"]}
    assert not left
    shared_world.assert_nothing_left((lab, name))
    # With no point left there is nothing to build on.
    job = shared_world.back_up(name)
    assert (job["disks"][0]["mode"], job["disks"][0]["mode_reason"]) == ("full", "first_backup")


def test_rule_21_two_vcenters_with_a_vm_of_the_same_name(shared_world: World, shared_lab: Lab) -> None:
    other, name = shared_world.lab("other"), "same-name"
    for lab in (shared_lab, other):
        (key,) = lab.add_vm(name, [8 * MIB]).disks
        lab.write(name, key, 0, data(MIB, lab.name))
    shared_world.ask("vm", "list")
    code, error = shared_world.refused("backup", "start", name)
    assert (code, error["reason"]) == (4, "VM_AMBIGUOUS")
    for lab in (shared_lab, other):
        job = shared_world.back_up(name, "--vcenter", lab.name)
        assert (job["vcenter_name"], job["disks"][0]["mode"]) == (lab.name, "full")
        shared_world.assert_restores(job, lab)
    for lab in (shared_lab, other):
        points = shared_world.ask("point", "list", name, "--vcenter", lab.name)["points"]
        assert [point["vcenter_name"] for point in points] == [lab.name]
    # Nobody has to wait for the vCenter that is gone.
    other.stop()
    shared_world.labs.remove(other)
    assert shared_world.back_up(name, "--vcenter", shared_lab.name)["disks"][0]["mode"] == "incremental"
    shared_world.ask("vcenter", "remove", "other")


def test_rule_01_a_disk_that_snapshots_leave_out_is_said(shared_world: World, shared_lab: Lab) -> None:
    lab, name = shared_lab, "partly"
    disks: list[dict[str, Any]] = [
        {"capacity_bytes": 8 * MIB},
        {"capacity_bytes": 8 * MIB, "disk_mode": "independent_persistent"},
    ]
    machine = lab.add_vm(name, disks)
    job = shared_world.back_up(name)
    skipped = job["disks"][1]
    assert (skipped["state"], skipped["mode_reason"]) == ("DISK_STATE_SKIPPED", "independent")
    point = shared_world.ask("point", "show", job["point_id"])
    assert [disk["key"] for disk in point["disks"]] == [machine.disks[0]]
    assert point["unprotected_disks"] == ["Hard disk 2: independent"]
    assert "Hard disk 2" in shared_world.run("job", "show", job["job_id"]).stdout


def test_exports_of_all_formats_hold_the_same(shared_world: World, shared_lab: Lab) -> None:
    lab, name = shared_lab, "formats"
    (key,) = lab.add_vm(name, [24 * MIB + 512]).disks
    lab.write(name, key, 3 * MIB, data(2 * MIB, "formats"))
    job = shared_world.back_up(name)
    source = lab.newest_frozen(name, key)
    for file_format in ("raw", "qcow2", "vmdk"):
        path = shared_world.export(job["point_id"], key, file_format)
        compared = qemu_img("compare", "-f", file_format, "-F", "raw", str(path), str(source))
        assert compared.returncode == 0, compared.stdout + compared.stderr
        path.unlink()
    digests = shared_world.ask("point", "verify", job["point_id"])
    assert digests["ok"] is True
