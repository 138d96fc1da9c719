# SPDX-License-Identifier: Apache-2.0
"""Rules of changed block tracking that the copy engine keeps."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.agent.recording_nbd import Handle, World, handles_of

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath import CopyOrder, Source
from sendense_agent.datapath.mover.comparing import RECORD
from sendense_agent.datapath.mover.engine import CopyEngine
from sendense_agent.domain.extents import Extents
from sendense_common.errors import SendenseError
from sendense_common.tunnel import TunnelConfig

pytestmark = pytest.mark.unit

MIB = 1024 * 1024


def ignore(event: pb.RunBackupResponse) -> None:
    pass


def copy(
    world: World,
    kind: type[Handle] = Handle,
    tell: Callable[[pb.RunBackupResponse], None] = ignore,
    **changes: Any,
) -> None:
    capacity = len(world.image)
    order = CopyOrder(
        disk_key=2000,
        label="Hard disk 1",
        capacity_bytes=capacity,
        source=Source(Path("source"), "", capacity),
        tunnel=TunnelConfig("h", 1, "a", Path("k"), "key"),
        export_name="e",
        local_socket=Path("target"),
        **{"read": Extents.whole(capacity), "zero": Extents(), "write_zeroes": False, **changes},
    )
    with handles_of(world, kind):
        CopyEngine(order, tell, lambda: 0).run()


def test_rule_12_a_fresh_full_writes_no_zeroes() -> None:
    image = bytes(MIB) + b"\1" * MIB + bytes(2 * MIB)
    world = World(image, bytearray(4 * MIB), random.Random(1))
    copy(world)
    written = {(kind, offset) for kind, offset, _ in world.asked if kind in {"write", "zero"}}
    assert written == {("write", MIB)}
    assert world.target == image


def test_rule_12_zeroes_over_old_data_are_written() -> None:
    image = bytes(MIB) + b"\1" * MIB + bytes(2 * MIB)
    world = World(image, bytearray(b"\7" * 4 * MIB), random.Random(1))
    copy(world, read=Extents([(0, 3 * MIB)]), zero=Extents([(3 * MIB, MIB)]), write_zeroes=True)
    assert world.target == image


@pytest.mark.parametrize("seed", range(10))
def test_rule_04_what_is_not_flushed_on_each_connection_is_in_no_checkpoint(seed: int) -> None:
    world = World(b"\1" * 8 * MIB, bytearray(8 * MIB), random.Random(seed))
    lost: list[int] = []

    def tell(event: pb.RunBackupResponse) -> None:
        lost.extend(
            record.offset_bytes
            for record in event.checkpoint.records
            if not all(world.durable[record.offset_bytes : record.offset_bytes + record.length_bytes])
        )

    copy(world, tell=tell)
    assert [kind for kind, *_ in world.asked].count("flush") >= 2
    assert lost == []


@pytest.mark.parametrize("wrong", ["source", "target"])
def test_rule_15_a_disk_of_another_size_on_either_side_fails_before_the_first_byte(wrong: str) -> None:
    class Resized(Handle):
        def get_size(self) -> int:
            return len(self.world.image) + 512 * (self.is_source == (wrong == "source"))

    world = World(b"\1" * MIB, bytearray(MIB), random.Random(1))
    with pytest.raises(SendenseError) as caught:
        copy(world, Resized)
    assert caught.value.reason == Reason.REASON_DISK_MISMATCH
    assert world.asked == []


def test_rule_26_a_disk_that_moves_away_while_it_is_read_fails_the_copy() -> None:
    """A storage migration leaves no file under the old name: from then on, every read of it fails."""
    world = World(b"\1" * 8 * MIB, bytearray(8 * MIB), random.Random(1))
    world.fail = lambda request: request.kind == "read" and request.offset >= 3 * MIB
    told: list[pb.RunBackupResponse] = []
    with pytest.raises(SendenseError) as caught:
        copy(world, tell=told.append)
    assert caught.value.reason == Reason.REASON_SOURCE_READ_FAILED
    assert not any(event.HasField("disk_done") for event in told)
    assert not any(world.target[3 * MIB :])


def sampled(before: bytes, *ranges: tuple[int, int]) -> bytes:
    """What the hub says that the previous point holds."""
    records = b""
    for offset, length in ranges:
        data = before[offset : offset + length]
        digest = hashlib.sha256(data).digest() if any(data) else b""
        records += RECORD.pack(offset, length, int(any(data)), digest)
    return records


def audited(world: World, before: bytes, audit: bytes, *, read: Extents) -> list[pb.RunBackupResponse]:
    told: list[pb.RunBackupResponse] = []

    def tell(event: pb.RunBackupResponse) -> None:
        told.append(pb.RunBackupResponse.FromString(event.SerializeToString()))

    copy(world, tell=tell, read=read, write_zeroes=True, audit=audit)
    return told


def test_rule_27_what_did_not_change_is_read_and_compared_apart_from_the_backup() -> None:
    before = b"\1" * 3 * MIB + bytes(MIB)
    image = b"\2" * MIB + before[MIB:]
    world = World(image, bytearray(before), random.Random(1))
    audit = sampled(before, (0, MIB), (MIB, MIB), (3 * MIB, MIB))
    told = audited(world, before, audit, read=Extents([(0, 65536)]))
    done = told[-1].disk_done.progress
    assert (done.read_bytes, done.audited_bytes, done.audit_mismatches) == (65536, 2 * MIB, 0)
    assert (done.copied_bytes, done.zero_bytes) == (65536, 0)
    assert not any(event.HasField("audit_mismatch") for event in told)
    assert [each for each in world.asked if each[0] != "read"] == [
        ("write", 0, 65536),
        *2 * [("flush", 0, 0)],
    ]


def test_rule_27_what_differs_is_stored_and_told() -> None:
    before = b"\1" * 3 * MIB + bytes(2 * MIB)
    image = bytearray(before)
    image[MIB + 7] = 9  # data that changed
    image[2 * MIB : 3 * MIB] = bytes(MIB)  # data that is zeroes now
    image[4 * MIB + 65536] = 9  # data where there was none
    world = World(bytes(image), bytearray(before), random.Random(1))
    told = audited(world, before, sampled(before, *((n * MIB, MIB) for n in range(5))), read=Extents())
    assert world.target == image
    found = [event.audit_mismatch for event in told if event.HasField("audit_mismatch")]
    assert {each.disk_key for each in found} == {2000}
    numbers = [number for each in found for number in each.extents_bytes]
    assert sorted(zip(numbers[::2], numbers[1::2], strict=True)) == [
        (MIB, MIB), (2 * MIB, MIB), (4 * MIB + 65536, 65536)
    ]  # fmt: skip
    done = told[-1].disk_done.progress
    assert (done.read_bytes, done.audited_bytes, done.audit_mismatches) == (0, 5 * MIB, 3)
    stored = [record for event in told for record in event.checkpoint.records]
    assert sorted((each.offset_bytes, each.length_bytes) for each in stored) == [
        (MIB, MIB), (2 * MIB, MIB), (4 * MIB + 65536, 65536)
    ]  # fmt: skip


def test_rule_27_a_mismatch_is_told_though_the_copy_fails_afterwards() -> None:
    before = b"\1" * 8 * MIB
    world = World(b"\2" * 8 * MIB, bytearray(before), random.Random(1))
    world.fail = lambda request: request.kind == "write"
    told: list[pb.RunBackupResponse] = []
    audit = sampled(before, *((n * MIB, MIB) for n in range(8)))
    with pytest.raises(SendenseError):
        copy(world, tell=told.append, read=Extents(), write_zeroes=True, audit=audit)
    assert any(event.HasField("audit_mismatch") for event in told)


def test_a_sample_that_cannot_be_ends_the_copy() -> None:
    world = World(b"\1" * MIB, bytearray(b"\1" * MIB), random.Random(1))
    with pytest.raises(SendenseError, match="cannot be"):
        copy(world, read=Extents(), audit=RECORD.pack(0, 2 * MIB, 1, b"d" * 32))
