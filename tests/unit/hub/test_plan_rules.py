# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2 as points
from sendense_common.errors import SendenseError
from sendense_hub.domain import plan_rules

pytestmark = pytest.mark.unit

SECTOR = plan_rules.SECTOR_BYTES
MISMATCH = Reason.REASON_DISK_MISMATCH


def disk(key: int = 2000, **changed: Any) -> agent.PlannedDisk:
    facts: dict[str, Any] = {
        "key": key,
        "disk_object_id": f"1-{key}",
        "capacity_bytes": 10 * SECTOR,
        "mode": agent.DISK_MODE_FULL,
    }
    return agent.PlannedDisk(**{**facts, **changed})


def before(**changed: Any) -> points.PointDisk:
    facts = {"key": 2000, "disk_object_id": "1-2000", "capacity_bytes": 10 * SECTOR, "change_id": "52/1"}
    return points.PointDisk(**{**facts, **changed})


def plan(*disks: agent.PlannedDisk) -> agent.BackupPlan:
    return agent.BackupPlan(vcenter_uuid="vc", vm_instance_uuid="vm", disks=disks)


def reason_of(
    made: agent.BackupPlan,
    *,
    vcenter_uuid: str = "vc",
    vm: str = "vm",
    previous: points.PointDisk | None = None,
    required: bool = False,
) -> Reason.ValueType | None:
    """Why a plan is refused; None when it is not."""
    try:
        plan_rules.check_form(made)
        plan_rules.check_plan(
            made,
            vcenter_uuid=vcenter_uuid,
            vm_instance_uuid=vm,
            previous={previous.key: previous} if previous else {},
            incremental_required=required,
        )
    except SendenseError as error:
        return error.reason
    return None


INCREMENTAL = disk(mode=agent.DISK_MODE_INCREMENTAL)


def test_a_plan_that_fits_is_taken():
    assert reason_of(plan(disk(), disk(2001))) is None
    assert reason_of(plan(INCREMENTAL), previous=before()) is None
    assert reason_of(plan(INCREMENTAL), previous=before(), required=True) is None
    assert reason_of(plan(disk()), vcenter_uuid="") is None


@pytest.mark.parametrize("previous", [None, before(key=2001)])
def test_rule_20_an_incremental_needs_a_complete_point_of_the_same_disk(previous: points.PointDisk | None):
    assert reason_of(plan(INCREMENTAL), previous=previous) == MISMATCH


def test_rule_05_a_disk_is_known_by_its_object_id():
    assert reason_of(plan(INCREMENTAL), previous=before(disk_object_id="1-2001")) == MISMATCH


def test_rule_14_an_incremental_of_another_size_is_refused():
    assert reason_of(plan(INCREMENTAL), previous=before(capacity_bytes=11 * SECTOR)) == MISMATCH


def test_rule_06_an_incremental_of_a_point_without_a_change_id_is_refused():
    assert reason_of(plan(INCREMENTAL), previous=before(change_id="")) == MISMATCH


def test_a_disk_is_compared_only_with_a_complete_point_of_itself_and_of_its_size():
    made = plan(disk(mode=agent.DISK_MODE_COMPARED))
    assert reason_of(made, previous=before(change_id="")) is None
    for wrong in (None, before(key=2001), before(disk_object_id="x"), before(capacity_bytes=11 * SECTOR)):
        assert reason_of(made, previous=wrong) == MISMATCH
    assert reason_of(made, previous=before(), required=True) == Reason.REASON_INCREMENTAL_NOT_POSSIBLE


def test_what_is_only_compared_needs_no_space_beforehand():
    read = 2**40
    plan_rules.check_space([disk(mode=agent.DISK_MODE_COMPARED, planned_read_bytes=read)], 2**30)
    with pytest.raises(SendenseError):
        plan_rules.check_space([disk(planned_read_bytes=read)], 2**30)


def test_rule_21_another_vm_or_vcenter_is_refused():
    assert reason_of(plan(disk()), vm="other") == MISMATCH
    assert reason_of(plan(disk()), vcenter_uuid="other") == MISMATCH


def test_a_full_is_refused_where_an_incremental_is_required():
    assert reason_of(plan(disk()), required=True) == Reason.REASON_INCREMENTAL_NOT_POSSIBLE


def test_rule_01_a_vm_without_a_disk_that_can_be_protected_is_refused():
    assert reason_of(plan()) == Reason.REASON_VM_HAS_NO_PROTECTABLE_DISK


@given(st.integers(-(2**63), 2**63 - 1))
def test_rule_22_only_whole_sectors_are_a_size(capacity_bytes: int):
    good = capacity_bytes > 0 and capacity_bytes % SECTOR == 0
    assert reason_of(plan(disk(capacity_bytes=capacity_bytes))) == (None if good else MISMATCH)


@given(st.lists(st.integers(2000, 2004), min_size=1, max_size=5), st.integers(0, 4))
def test_no_device_key_occurs_twice(keys: list[int], skipped: int):
    made = plan(*(disk(key, disk_object_id=f"1-{n}") for n, key in enumerate(keys)))
    for disk_ in made.disks[len(made.disks) - min(skipped, len(keys) - 1) :]:
        made.skipped_disks.add(key=disk_.key)
    del made.disks[len(made.disks) - len(made.skipped_disks) :]
    assert reason_of(made) == (None if len(set(keys)) == len(keys) else MISMATCH)


def test_no_disk_object_id_occurs_twice_but_none_at_all_may():
    assert reason_of(plan(disk(), disk(2001, disk_object_id="1-2000"))) == MISMATCH
    assert reason_of(plan(disk(disk_object_id=""), disk(2001, disk_object_id=""))) is None


@pytest.mark.parametrize("mode", [agent.DISK_MODE_UNSPECIFIED, 7])
def test_a_disk_without_a_known_mode_is_refused(mode: int):
    assert reason_of(plan(disk(mode=mode))) == MISMATCH


@pytest.mark.parametrize("name", ["planned_read_bytes", "changed_bytes"])
def test_a_negative_number_of_bytes_is_refused(name: str):
    assert reason_of(plan(disk(**{name: -1}))) == MISMATCH


def test_a_configuration_that_is_no_json_is_refused_before_anything_is_made():
    made = plan(disk())
    made.vm_config_json = b"\xff{"
    assert reason_of(made) == MISMATCH
    made.vm_config_json = b"{}"
    assert reason_of(made) is None


@given(st.lists(st.integers(0, 2**40), max_size=4), st.integers(0, 2**42))
def test_what_cannot_fit_is_refused(reads: list[int], free_bytes: int):
    disks = [disk(planned_read_bytes=each) for each in reads]
    if sum(reads) + 64 * 1024 * 1024 > free_bytes:
        with pytest.raises(SendenseError) as full:
            plan_rules.check_space(disks, free_bytes)
        assert full.value.reason == Reason.REASON_REPOSITORY_FULL
    else:
        plan_rules.check_space(disks, free_bytes)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [pb.DISK_STATE_PENDING, pb.DISK_STATE_COPYING, pb.DISK_STATE_COPIED, pb.DISK_STATE_SKIPPED]
            ),
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        max_size=4,
    )
)
def test_ff10_all_disks_and_all_of_each_must_be_copied(disks: list[tuple[int, int, int]]):
    job = pb.Job()
    for state, read_bytes, planned_read_bytes in disks:
        job.disks.add(read_bytes=read_bytes, planned_read_bytes=planned_read_bytes).state = state  # type: ignore[assignment]
    whole = all(
        state == pb.DISK_STATE_SKIPPED or (state == pb.DISK_STATE_COPIED and read >= planned)
        for state, read, planned in disks
    )
    if whole:
        plan_rules.check_copied(job)
    else:
        with pytest.raises(SendenseError):
            plan_rules.check_copied(job)
