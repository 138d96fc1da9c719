# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.control.event_log import EventLog

pytestmark = pytest.mark.unit


def warning(code: str = "w") -> pb.RunBackupResponse:
    return pb.RunBackupResponse(warning=pb.Warning(code=code))


def progress(read_bytes: int) -> pb.RunBackupResponse:
    disk = pb.DiskProgress(disk_key=2000, read_bytes=read_bytes)
    return pb.RunBackupResponse(progress=pb.BackupProgress(disks=[disk]))


def done() -> pb.RunBackupResponse:
    return pb.RunBackupResponse(done=pb.BackupDone(snapshot_removed=True))


def failed() -> pb.RunBackupResponse:
    return pb.RunBackupResponse(failed=pb.BackupFailed())


async def to_the_end(log: EventLog, after_seq: int = 0) -> list[pb.RunBackupResponse]:
    async with asyncio.timeout(5):
        return [event async for event in log.follow(after_seq)]


def numbers(events: list[pb.RunBackupResponse]) -> list[int]:
    return [event.seq for event in events]


@given(st.lists(st.sampled_from(["warning", "progress"])), st.sampled_from([done, failed]), st.data())
def test_events_are_numbered_without_gaps_and_can_be_followed_from_any_number(
    kinds, last, data: st.DataObject
):
    """Progress has no number of its own and is not repeated to who joins later."""

    async def run() -> None:
        log = EventLog()
        for count, kind in enumerate(kinds):
            log.append(warning(str(count)) if kind == "warning" else progress(count))
        log.append(last())
        total = kinds.count("warning") + 1
        after = data.draw(st.integers(0, total - 1))
        said = await to_the_end(log, after)
        assert numbers(said) == list(range(after + 1, total + 1))
        codes = [str(count) for count, kind in enumerate(kinds) if kind == "warning"]
        assert [event.warning.code for event in said[:-1]] == codes[after:]

    asyncio.run(run())


@given(st.data())
def test_acknowledged_events_are_forgotten_and_all_others_kept(data: st.DataObject):
    async def run() -> None:
        log = EventLog()
        total = data.draw(st.integers(1, 20))
        acks = data.draw(st.lists(st.integers(-1, 25), max_size=4))
        for _ in range(total):
            log.append(warning())
        for ack in acks:
            log.ack(ack)
        stored = max([0, *(min(ack, total) for ack in acks)])
        for seq in range(-1, total + 3):
            assert log.continues_after(seq) == (stored <= seq <= total)
        log.append(done())
        assert numbers(await to_the_end(log, stored)) == list(range(stored + 1, total + 2))

    asyncio.run(run())


async def test_progress_carries_no_number_and_only_the_newest_is_told():
    log = EventLog()
    heard: list[pb.RunBackupResponse] = []

    async def listen() -> None:
        heard.extend([event async for event in log.follow(0)])

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    for count in (1, 2, 3):
        log.append(progress(count))
    log.append(warning())
    await asyncio.sleep(0)
    log.append(done())
    await asyncio.wait_for(listening, 5)
    assert [(event.seq, event.WhichOneof("event")) for event in heard] == [
        (0, "progress"),
        (1, "warning"),
        (2, "done"),
    ]
    assert heard[0].progress.disks[0].read_bytes == 3


async def test_progress_of_before_is_not_repeated_on_a_rejoin():
    log = EventLog()
    log.append(progress(7))
    async with contextlib.aclosing(log.follow(0)) as events:
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        log.append(progress(8))
        assert (await asyncio.wait_for(waiting, 5)).progress.disks[0].read_bytes == 8


@pytest.mark.parametrize("last", [done, failed])
async def test_nothing_follows_the_last_event(last):
    log = EventLog()
    log.append(last())
    assert log.ended
    for late in (warning(), progress(1), done(), failed()):
        log.append(late)
    assert numbers(await to_the_end(log)) == [1]
    assert not log.continues_after(1)


async def test_one_who_follows_hears_what_comes_while_it_is_busy():
    log = EventLog()
    log.append(warning("a"))
    heard = []
    async with asyncio.timeout(5):
        async for event in log.follow(0):
            heard.append(event.seq)
            if event.seq < 4:
                log.append(warning() if event.seq < 3 else done())
    assert heard == [1, 2, 3, 4]


async def test_two_who_follow_hear_everything_each():
    log = EventLog()
    both = [asyncio.create_task(to_the_end(log)) for _ in range(2)]
    await asyncio.sleep(0)
    log.append(warning())
    await asyncio.sleep(0)
    log.append(done())
    assert [numbers(await each) for each in both] == [[1, 2], [1, 2]]


async def test_who_follows_ends_also_when_the_hub_has_stored_the_end_by_another_stream():
    log = EventLog()
    behind = asyncio.create_task(to_the_end(log))
    log.append(warning())
    log.append(done())
    log.ack(2)  # before `behind` had its turn
    assert await behind == []


async def test_drained_means_ended_and_stored_or_delivered():
    for tell in ("ack", "follow"):
        log = EventLog()
        log.append(warning())
        log.ack(1)
        drained = asyncio.create_task(log.wait_drained())
        await asyncio.sleep(0)
        assert not drained.done()
        log.append(failed())
        await asyncio.sleep(0)
        assert not drained.done()
        if tell == "ack":
            log.ack(2)
        else:
            assert numbers(await to_the_end(log, 1)) == [2]
        await asyncio.wait_for(drained, 5)
