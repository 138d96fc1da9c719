# SPDX-License-Identifier: Apache-2.0
"""Asking for changed areas: every page is checked, and no doubt is taken for an answer."""

from __future__ import annotations

import pytest
from tests.integration.vsphere.kit import GRANULE, calls, fails, freeze, tracked

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import ChangeIdRejectedError, Session, Snapshot
from sendense_agent.vsphere import session as session_module
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CAPACITY = 30 * GRANULE + 512
QUERY = "QueryChangedDiskAreas"


async def changed(lab: LabClient, session: Session, name: str, *granules: int) -> tuple[Snapshot, str]:
    """(second snapshot, change ID of the first): between them the guest wrote those granules."""
    _, machine = await tracked(lab, session, name, CAPACITY)
    first = await freeze(machine)
    before = first.disks[0].change_id
    await first.remove()
    for granule in granules:
        await lab.guest_write(name, 2000, granule * GRANULE + 7, b"x")
    return await freeze(machine), before


async def ask(snapshot: Snapshot, change_id: str) -> list[tuple[int, int]]:
    return list(await snapshot.changed_since(snapshot.disks[0], change_id))


EXPECTED = [(0, GRANULE), (3 * GRANULE, 2 * GRANULE), (29 * GRANULE, GRANULE + 512)]


@pytest.mark.parametrize(
    ("per_page", "window"), [(2000, 0), (1, 0), (2, 0), (2000, GRANULE), (1, 512 * 9), (2000, 10 * GRANULE)]
)
async def test_rule_08_pages_of_any_size_say_the_same(
    lab: LabClient, session: Session, per_page: int, window: int
) -> None:
    snapshot, before = await changed(lab, session, f"pages-{per_page}-{window}", 0, 3, 4, 29, 30)
    await lab.command("set", areas_per_page=per_page, window_bytes=window)
    assert await ask(snapshot, before) == EXPECTED
    allocated = await snapshot.allocated(snapshot.disks[0])
    assert allocated is not None
    assert list(allocated) == EXPECTED


async def test_rule_08_it_never_asks_at_the_end_of_the_disk(lab: LabClient, session: Session) -> None:
    snapshot, before = await changed(lab, session, "end", 30)
    count = await calls(lab, QUERY)
    assert await ask(snapshot, before) == [(30 * GRANULE, 512)]
    assert await calls(lab, QUERY) == count + 1
    await lab.command("set", window_bytes=10 * GRANULE)
    assert await ask(snapshot, before) == [(30 * GRANULE, 512)]
    assert await calls(lab, QUERY) == count + 5


async def test_rule_09_an_empty_page_is_not_the_end(lab: LabClient, session: Session) -> None:
    snapshot, before = await changed(lab, session, "empty", 0, 29)
    await lab.command("set", window_bytes=7 * GRANULE)
    assert await ask(snapshot, before) == [(0, GRANULE), (29 * GRANULE, GRANULE)]


async def test_ff30_no_change_is_no_area(lab: LabClient, session: Session) -> None:
    snapshot, before = await changed(lab, session, "nothing")
    assert await ask(snapshot, before) == []


@pytest.mark.parametrize(
    "wrong", ["elsewhere", "no_length", "beyond_end", "outside_page", "empty_area", "out_of_order", "twice"]
)
async def test_rule_08_an_answer_that_cannot_be_right_is_not_believed(
    lab: LabClient, session: Session, wrong: str
) -> None:
    snapshot, before = await changed(lab, session, f"wrong-{wrong}", 1, 3, 5)
    await lab.command("set", areas_wrong=wrong)
    with fails(Reason.REASON_CBT_INCONSISTENT, f"Hard disk 1 of VM wrong-{wrong} cannot be right") as caught:
        await ask(snapshot, before)
    assert not caught.value.retryable
    assert caught.value.metadata["disk"] == "2000"
    # What is in use is only a way to read less: then everything is read.
    assert await snapshot.allocated(snapshot.disks[0]) is None


async def test_rule_08_areas_beyond_their_page_are_not_believed(lab: LabClient, session: Session) -> None:
    snapshot, before = await changed(lab, session, "beyond-page", 1, 3)
    await lab.command("set", areas_wrong="outside_page", window_bytes=10 * GRANULE)
    with fails(Reason.REASON_CBT_INCONSISTENT, "lies outside its page"):
        await ask(snapshot, before)


async def test_rule_11_a_change_id_of_another_tracking_is_rejected(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "reset", CAPACITY)
    first = await freeze(machine)
    await first.remove()
    await lab.command("reset_tracking", vm="reset")
    snapshot = await freeze(machine)
    with pytest.raises(ChangeIdRejectedError, match="FileFault"):
        await ask(snapshot, first.disks[0].change_id)


async def test_rule_11_a_change_id_that_is_none_is_rejected(lab: LabClient, session: Session) -> None:
    snapshot, _ = await changed(lab, session, "none")
    with pytest.raises(ChangeIdRejectedError, match="InvalidArgument"):
        await ask(snapshot, "nonsense")


async def test_rule_11_an_argument_without_a_name_counts_as_the_change_id(
    lab: LabClient, session: Session
) -> None:
    snapshot, before = await changed(lab, session, "nameless")
    await lab.inject_fault(QUERY, "vmodl.fault.InvalidArgument")
    with pytest.raises(ChangeIdRejectedError, match="InvalidArgument"):
        await ask(snapshot, before)


async def test_rule_11_a_rejection_on_a_later_page_is_a_rejection(lab: LabClient, session: Session) -> None:
    snapshot, before = await changed(lab, session, "later", 0, 20)
    await lab.command("set", window_bytes=10 * GRANULE)
    await lab.inject_fault(QUERY, "vim.fault.FileFault", at_call=3)
    with pytest.raises(ChangeIdRejectedError):
        await ask(snapshot, before)


async def test_rule_11_a_session_that_ends_between_two_pages_repeats_that_page(
    lab: LabClient, session: Session
) -> None:
    snapshot, before = await changed(lab, session, "session", 0, 3, 4, 29, 30)
    await lab.command("set", window_bytes=10 * GRANULE)
    await lab.inject_fault(QUERY, "vim.fault.NotAuthenticated", at_call=2)
    logins, count = (await lab.counters())["logins"], await calls(lab, QUERY)
    assert await ask(snapshot, before) == EXPECTED
    assert (await lab.counters())["logins"] == logins + 1
    assert await calls(lab, QUERY) == count + 5


async def test_another_wrong_argument_is_a_fault_of_ours(lab: LabClient, session: Session) -> None:
    snapshot, before = await changed(lab, session, "argument")
    with fails(Reason.REASON_VSPHERE_FAULT, "deviceKey"):
        stranger = snapshot.disks[0].__class__(**{**vars(snapshot.disks[0]), "key": 2009})
        await snapshot.changed_since(stranger, before)


@pytest.mark.parametrize(
    "fault",
    ["vim.fault.FileFault", "vmodl.fault.NotSupported", "vmodl.fault.SystemError", "vim.fault.InvalidState"],
)
async def test_rule_07_where_used_areas_cannot_be_told_everything_is_used(
    lab: LabClient, session: Session, fault: str
) -> None:
    snapshot, _ = await changed(lab, session, f"used-{fault}", 1)
    await lab.inject_fault(QUERY, fault)
    assert await snapshot.allocated(snapshot.disks[0]) is None


async def test_rule_07_a_datastore_that_cannot_tell_says_so_by_a_fault(
    lab: LabClient, session: Session
) -> None:
    snapshot, before = await changed(lab, session, "cannot-tell", 1)
    await lab.command("set", used_areas=False)
    assert await snapshot.allocated(snapshot.disks[0]) is None
    assert await ask(snapshot, before) == [(GRANULE, GRANULE)]


async def test_rule_10_a_snapshot_that_is_gone_is_no_reason_to_read_everything(
    lab: LabClient, session: Session
) -> None:
    snapshot, before = await changed(lab, session, "gone", 1)
    await lab.command("remove_snapshots", vm="gone")
    for asking in (snapshot.allocated(snapshot.disks[0]), snapshot.changed_since(snapshot.disks[0], before)):
        with fails(Reason.REASON_SNAPSHOT_LOST, "ManagedObjectNotFound"):
            await asking


@pytest.mark.parametrize("fault", ["vim.fault.NoPermission", "vim.fault.NotAuthenticated"])
async def test_rule_07_a_refused_question_is_not_answered_by_reading_everything(
    lab: LabClient, session: Session, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_READ_AGAIN_AFTER_S", ())
    snapshot, _ = await changed(lab, session, f"refused-{fault}", 1)
    await lab.inject_fault(QUERY, fault, times=2)
    reasons = {"vim.fault.NoPermission": Reason.REASON_VCENTER_NO_PERMISSION}
    with fails(reasons.get(fault, Reason.REASON_VCENTER_SESSION_LOST)):
        await snapshot.allocated(snapshot.disks[0])
