# SPDX-License-Identifier: Apache-2.0
"""Full, incremental or compared."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.domain.disk_mode import INCREMENTAL, DiskMode, DiskNow, decide

pytestmark = pytest.mark.unit

TRACKING = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63"
UNTRUSTED = {"cbt_just_enabled", "change_id_missing", "change_id_rejected"}
"""The disk is certain, its changes are not."""
NOW = DiskNow(2000, "101-2000", "6000C29a", 10 * 2**30, f"{TRACKING}/9")


def previous(**changes: object) -> pb.PreviousDisk:
    known: dict[str, object] = {
        "key": 2000,
        "disk_object_id": "101-2000",
        "backing_uuid": "6000C29a",
        "capacity_bytes": 10 * 2**30,
        "change_id": f"{TRACKING}/8",
    }
    return pb.PreviousDisk(**{**known, **changes})  # type: ignore[arg-type]


def reason(before: pb.PreviousDisk | None, now: DiskNow = NOW, *, enabled: bool = False) -> str:
    decision = decide(before, now, tracking_just_enabled=enabled)
    expected = pb.DISK_MODE_COMPARED if decision.reason in UNTRUSTED else pb.DISK_MODE_FULL
    assert decision.mode == (expected if decision.reason else pb.DISK_MODE_INCREMENTAL)
    return decision.reason


def test_an_unchanged_disk_with_a_change_id_is_copied_incrementally() -> None:
    assert decide(previous(), NOW, tracking_just_enabled=False) == INCREMENTAL
    assert DiskMode(pb.DISK_MODE_INCREMENTAL, "") == INCREMENTAL


def test_the_first_backup_is_a_full() -> None:
    assert reason(None) == "first_backup"


def test_rule_02_the_first_backup_after_turning_tracking_on_reads_everything() -> None:
    assert reason(previous(), enabled=True) == "cbt_just_enabled"
    assert reason(previous(), dataclasses.replace(NOW, change_id="")) == "change_id_missing"
    assert reason(previous(change_id="")) == "change_id_missing"


def test_rule_27_a_disk_whose_tracking_left_something_out_is_compared_with_its_last_point() -> None:
    made = decide(previous(), NOW, tracking_just_enabled=False, trusted=False)
    assert made == DiskMode(pb.DISK_MODE_COMPARED, "cbt_not_trusted")
    assert decide(None, NOW, tracking_just_enabled=False, trusted=False).reason == "first_backup"
    grown = dataclasses.replace(NOW, capacity_bytes=11 * 2**30)
    assert decide(previous(), grown, tracking_just_enabled=False, trusted=False).mode == pb.DISK_MODE_FULL


@pytest.mark.parametrize(
    "changes",
    [{"disk_object_id": "101-2001"}, {"backing_uuid": "6000C29b"}, {"key": 2001}],
)
def test_rule_05_another_disk_in_the_same_place_is_a_full(changes: dict[str, object]) -> None:
    assert reason(previous(**changes)) == "identity_changed"


def test_rule_05_a_device_key_alone_is_no_identity() -> None:
    nameless = dataclasses.replace(NOW, disk_object_id="", backing_uuid="")
    assert reason(previous(disk_object_id="", backing_uuid=""), nameless) == "identity_changed"
    without_object_id = dataclasses.replace(NOW, disk_object_id="")
    assert reason(previous(disk_object_id=""), without_object_id) == ""
    assert reason(previous(backing_uuid="")) == ""


def test_rule_06_a_change_id_of_another_tracking_means_reading_everything() -> None:
    assert reason(previous(change_id="52 00/8")) == "change_id_rejected"


def test_rule_06_a_change_id_from_the_future_means_reading_everything() -> None:
    """The VM was put back to an older snapshot."""
    assert reason(previous(change_id=f"{TRACKING}/10")) == "change_id_rejected"
    assert reason(previous(change_id=f"{TRACKING}/9")) == ""


@pytest.mark.parametrize("odd", [TRACKING, "/8", "*", f"{TRACKING}/", f"{TRACKING}/x", f"{TRACKING}/-1"])
def test_rule_06_a_change_id_that_is_none_means_reading_everything(odd: str) -> None:
    assert reason(previous(change_id=odd)) == "change_id_rejected"
    assert reason(previous(), dataclasses.replace(NOW, change_id=odd)) == "change_id_rejected"


def test_rule_14_another_size_is_a_full() -> None:
    grown = dataclasses.replace(NOW, capacity_bytes=NOW.capacity_bytes + 512)
    assert reason(previous(), grown) == "capacity_changed"


@given(
    before=st.builds(
        pb.PreviousDisk,
        key=st.sampled_from([2000, 2001]),
        disk_object_id=st.sampled_from(["", "a", "b"]),
        backing_uuid=st.sampled_from(["", "u", "v"]),
        capacity_bytes=st.sampled_from([512, 1024]),
        change_id=st.sampled_from(["", "*", "x/1", "x/2", "y/1"]),
    ),
    now=st.builds(
        DiskNow,
        key=st.sampled_from([2000, 2001]),
        disk_object_id=st.sampled_from(["", "a", "b"]),
        backing_uuid=st.sampled_from(["", "u", "v"]),
        capacity_bytes=st.sampled_from([512, 1024]),
        change_id=st.sampled_from(["", "*", "x/1", "x/2", "y/1"]),
    ),
    enabled=st.booleans(),
)
def test_only_a_certain_disk_is_copied_incrementally(
    before: pb.PreviousDisk, now: DiskNow, enabled: bool
) -> None:
    if decide(before, now, tracking_just_enabled=enabled) == INCREMENTAL:
        assert not enabled
        assert (before.key, before.disk_object_id) == (now.key, now.disk_object_id)
        assert before.capacity_bytes == now.capacity_bytes
        assert before.change_id.split("/")[0] == now.change_id.split("/")[0] in {"x", "y"}
        assert before.disk_object_id or before.backing_uuid == now.backing_uuid != ""


@given(
    capacity=st.sampled_from([512, 1024]),
    identity=st.sampled_from(["a", "b"]),
    change_ids=st.tuples(*[st.sampled_from(["", "*", "x/1", "x/2", "y/1"])] * 2),
    enabled=st.booleans(),
)
def test_only_the_same_disk_of_the_same_size_is_compared(
    capacity: int, identity: str, change_ids: tuple[str, str], enabled: bool
) -> None:
    before = pb.PreviousDisk(key=2000, disk_object_id="a", capacity_bytes=512, change_id=change_ids[0])
    now = DiskNow(2000, identity, "", capacity, change_ids[1])
    made = decide(before, now, tracking_just_enabled=enabled)
    assert (made.mode == pb.DISK_MODE_FULL) == ((identity, capacity) != ("a", 512))
