# SPDX-License-Identifier: Apache-2.0
"""The copy engine against connections that answer in any order, and with errors on order."""

from __future__ import annotations

import hashlib
import random
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.agent.recording_nbd import Handle, Request, World, handles_of

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath import CopyOrder, Source
from sendense_agent.datapath.mover import allowance, engine, pieces
from sendense_agent.datapath.mover.allowance import Allowance
from sendense_agent.datapath.mover.engine import CopyEngine
from sendense_agent.domain.extents import Extents
from sendense_common.errors import SendenseError
from sendense_common.tunnel import TunnelConfig

pytestmark = pytest.mark.unit

KIB, MIB = 1024, 1024 * 1024


def order(capacity_bytes: int, **changes: Any) -> CopyOrder:
    values: dict[str, Any] = {
        "read": Extents.whole(capacity_bytes),
        "zero": Extents(),
        "write_zeroes": False,
        "in_flight_bytes": 4 * MIB,
        **changes,
    }
    return CopyOrder(
        disk_key=2000,
        label="Hard disk 1",
        capacity_bytes=capacity_bytes,
        source=Source(Path("source"), "", capacity_bytes),
        tunnel=TunnelConfig("h", 1, "a", Path("k"), "key"),
        export_name="e",
        local_socket=Path("target"),
        **values,
    )


class Told:
    """What an engine said; each record is checked against what a crash at that moment would leave."""

    def __init__(self, world: World, *, write_zeroes: bool) -> None:
        self._world = world
        self._write_zeroes = write_zeroes
        self.records: list[pb.LedgerRecord] = []
        self.progress: list[pb.DiskProgress] = []
        self.done: pb.DiskDone | None = None

    def __call__(self, event: pb.RunBackupResponse) -> None:
        assert self.done is None
        match event.WhichOneof("event"):
            case "progress":
                copy = pb.DiskProgress()
                copy.CopyFrom(event.progress.disks[0])
                self.progress.append(copy)
            case "checkpoint":
                for record in event.checkpoint.records:
                    self._check(record)
                    self.records.append(record)
            case "disk_done":
                self.done = event.disk_done

    def _check(self, record: pb.LedgerRecord) -> None:
        part = slice(record.offset_bytes, record.offset_bytes + record.length_bytes)
        durable = bytes(self._world.durable[part])
        if record.sha256:
            assert hashlib.sha256(durable).digest() == record.sha256
            assert record.length_bytes <= pieces.PIECE_BYTES
            assert part.start // MIB == (part.stop - 1) // MIB
        elif self._write_zeroes:
            assert not any(durable)
        else:
            assert not any(self._world.image[part])


def run(world: World, wanted: CopyOrder) -> Told:
    told = Told(world, write_zeroes=wanted.write_zeroes)
    with handles_of(world):
        CopyEngine(wanted, told, lambda: 0).run()
    return told


def picture(dice: random.Random, capacity_bytes: int) -> bytes:
    """Data, zeroes and mixtures of both."""
    image = bytearray(capacity_bytes)
    for start in range(0, capacity_bytes, 64 * KIB):
        end = min(start + 64 * KIB, capacity_bytes)
        match dice.randrange(3):
            case 0:
                image[start:end] = dice.randbytes(end - start)
            case 1:
                image[dice.randrange(start, end)] = 1
    return bytes(image)


@st.composite
def split(draw: st.DrawFn) -> tuple[int, Extents, Extents]:
    """(capacity, what to read, what to zero): disjoint, with odd borders and an odd tail."""
    capacity = draw(st.sampled_from([1, 511, 512, 65_537, MIB, MIB + 1, 3 * MIB + 512, 5 * MIB - 1]))
    borders = sorted(draw(st.sets(st.integers(0, capacity), max_size=8)) | {0, capacity})
    read, zero = Extents(), Extents()
    for start, end in pairwise(borders):
        place = draw(st.sampled_from([read, zero, None]))
        if place is not None:
            place.append(start, end - start)
    return capacity, read, zero


FEW = settings(max_examples=30)


@FEW
@given(split(), st.booleans(), st.integers(0, 2**32), st.sampled_from([1, 300_000, 2 * MIB, 2**40]))
def test_every_checkpoint_holds_only_what_its_flush_covers_and_the_end_holds_everything(
    ranges: tuple[int, Extents, Extents], write_zeroes: bool, seed: int, checkpoint_bytes: int
):
    capacity, read, zero = ranges
    zero = zero if write_zeroes else Extents()
    dice = random.Random(seed)
    old = dice.randbytes(capacity) if write_zeroes else bytes(capacity)
    world = World(picture(dice, capacity), bytearray(old), dice)
    wanted = order(
        capacity, read=read, zero=zero, write_zeroes=write_zeroes, checkpoint_bytes=checkpoint_bytes
    )
    told = run(world, wanted)
    expected = bytearray(old)
    for start, length in zero:
        expected[start : start + length] = bytes(length)
    for start, length in read:
        expected[start : start + length] = world.image[start : start + length]
    assert world.durable == expected
    covered = Extents(sorted((each.offset_bytes, each.length_bytes) for each in told.records))
    assert covered == read.union(zero)
    assert told.done is not None
    counted = told.done.progress
    assert counted.read_bytes == read.total_bytes
    assert counted.copied_bytes + counted.zero_bytes == read.total_bytes + zero.total_bytes
    assert world.most_reading_bytes <= wanted.in_flight_bytes
    if not write_zeroes:
        assert "zero" not in {kind for kind, _, _ in world.asked}
    for before, after in pairwise(told.progress):
        assert before.read_bytes <= after.read_bytes
        assert before.copied_bytes <= after.copied_bytes
        assert before.zero_bytes <= after.zero_bytes


@FEW
@given(st.sampled_from(["read", "write", "zero", "flush"]), st.integers(0, 20), st.integers(0, 2**32))
def test_an_error_of_any_request_fails_the_copy_and_nothing_unread_is_ever_written(
    kind: str, at: int, seed: int
):
    dice = random.Random(seed)
    capacity = 3 * MIB - 512
    count = 0
    if kind == "flush":
        at %= 2  # there are at least two, one on each connection

    def fail(request: Request) -> bool:
        nonlocal count
        count += request.kind == kind
        return request.kind == kind and count > at

    world = World(picture(dice, capacity), bytearray(b"o" * capacity), dice, fail)
    wanted = order(capacity, write_zeroes=True, checkpoint_bytes=512 * KIB)
    told = Told(world, write_zeroes=True)
    with handles_of(world):
        if kind == "flush" or sum(each == kind for each, _, _ in _all_requests(world.image)) > at:
            with pytest.raises(SendenseError, match="Input/output error") as failed:
                CopyEngine(wanted, told, lambda: 0).run()
            source = kind == "read"
            expected = Reason.REASON_SOURCE_READ_FAILED if source else Reason.REASON_TARGET_WRITE_FAILED
            assert failed.value.reason == expected
            assert failed.value.metadata["disk"] == "2000"
            assert told.done is None
        else:
            CopyEngine(wanted, told, lambda: 0).run()
            assert told.done is not None
    for start in range(0, capacity, 64 * KIB):
        part = slice(start, min(start + 64 * KIB, capacity))
        old = b"o" * (part.stop - part.start)
        assert bytes(world.target[part]) in (old, world.image[part])


def _all_requests(image: bytes) -> Iterator[tuple[str, int, int]]:
    """What a copy of a whole image with written zeroes asks for, flushes aside."""
    for offset, length in pieces.reads(Extents.whole(len(image))):
        yield "read", offset, length
        for start, size, zero in pieces.runs(memoryview(image)[offset : offset + length], offset):
            yield "zero" if zero else "write", offset + start, size


@pytest.mark.parametrize("kind", ["read", "write", "zero", "flush"])
def test_a_request_that_cannot_be_sent_fails_the_copy(kind: str):
    image = b"d" * MIB + bytes(MIB)
    world = World(image, bytearray(2 * MIB), random.Random(1), refuse=kind)
    with pytest.raises(SendenseError, match="cannot be sent: said by") as failed:
        run(world, order(2 * MIB, write_zeroes=True))
    source = kind == "read"
    expected = Reason.REASON_SOURCE_READ_FAILED if source else Reason.REASON_TARGET_WRITE_FAILED
    assert failed.value.reason == expected


@pytest.mark.parametrize("broken", ["source", "target"])
def test_a_connection_that_dies_in_the_middle_fails_the_copy(broken: str):
    world = World(b"d" * (3 * MIB), bytearray(3 * MIB), random.Random(1))

    def fail(request: Request) -> bool:
        for handle in world.handles:
            if handle.is_source == (broken == "source"):
                handle.dead = True
        return False

    world.fail = fail
    with pytest.raises(SendenseError, match="connection was closed") as failed:
        run(world, order(3 * MIB))
    source = broken == "source"
    expected = Reason.REASON_SOURCE_READ_FAILED if source else Reason.REASON_TARGET_WRITE_FAILED
    assert failed.value.reason == expected


def test_zeroes_go_out_in_pieces_below_4_gib_and_few_at_a_time():
    capacity = 9 * 2**30 + 512
    world = World(b"", bytearray(), random.Random(1))
    world.eagerness = 0
    asked: list[tuple[int, int]] = []
    open_count = most_open_count = 0

    class Zeroing(Handle):
        def get_size(self) -> int:
            return capacity

        def aio_zero(self, length: int, offset: int, completed: Any) -> None:
            nonlocal open_count, most_open_count

            def finish(error: int) -> None:
                nonlocal open_count
                open_count -= 1
                completed(types.SimpleNamespace(value=error))

            asked.append((offset, length))
            open_count += 1
            most_open_count = max(most_open_count, open_count)
            self._ask(Request("zero", offset, length, finish))

    records: list[pb.LedgerRecord] = []
    wanted = order(capacity, read=Extents(), zero=Extents.whole(capacity), write_zeroes=True)
    with handles_of(world, Zeroing):
        CopyEngine(wanted, lambda event: records.extend(event.checkpoint.records), lambda: 0).run()
    assert Extents(sorted(asked)) == Extents.whole(capacity)
    assert max(length for _, length in asked) < 4 * 2**30
    assert most_open_count == 4 + 2 < len(asked)  # as many as there are buffers and connections
    assert sum(record.length_bytes for record in records) == capacity


def test_a_buffer_smaller_than_a_piece_still_copies():
    world = World(b"d" * (2 * MIB + 1), bytearray(2 * MIB + 1), random.Random(1))
    run(world, order(2 * MIB + 1, in_flight_bytes=4096))
    assert world.durable == world.image
    assert world.most_reading_bytes <= MIB


def test_ff01_a_server_that_never_greets_fails_the_copy_in_the_end(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    world = World(b"d" * MIB, bytearray(MIB), random.Random(1))

    class Silent(Handle):
        def aio_is_connecting(self) -> bool:
            return not self.is_source

        def poll(self, timeout_ms: int) -> None:
            assert 0 < timeout_ms <= 1000
            clock.now += timeout_ms / 1000

    told = Told(world, write_zeroes=False)
    with handles_of(world, Silent), pytest.raises(SendenseError, match="no NBD handshake") as failed:
        CopyEngine(order(MIB), told, lambda: 0).run()
    assert failed.value.reason == Reason.REASON_TARGET_WRITE_FAILED
    waited_s = clock.now - 100
    assert waited_s < len(told.progress) <= 10 * waited_s


class Clock:
    """Time as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (engine, allowance):
            monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: self.now))


def test_an_allowance_gives_its_rate_and_at_most_a_second_in_advance(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    given = Allowance()
    assert all(given.take(MIB) for _ in range(1000))  # no limit
    clock.now += 3600
    given.set(10 * MIB)
    given_bytes = 0
    for _ in range(200):  # 20 s in steps of a tenth
        while given.take(MIB):
            given_bytes += MIB
        clock.now += 0.1
    assert 200 * MIB <= given_bytes <= 211 * MIB
    given.set(0)
    assert all(given.take(MIB) for _ in range(1000))


def test_an_allowance_below_one_piece_still_gives_it_in_time(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    given = Allowance()
    given.set(MIB // 8)
    given_at = []
    for step in range(33 * 10):
        if given.take(MIB):
            given_at.append(step / 10)
        clock.now += 0.1
    assert len(given_at) == 4
    assert given_at[-1] == pytest.approx(32, abs=1)
