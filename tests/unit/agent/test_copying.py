# SPDX-License-Identifier: Apache-2.0
"""Several disks at once: the rate is shared, the first failure counts, every copy cleans up."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import pytest

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.extents import Extents
from sendense_agent.domain.remainder import Remainder
from sendense_agent.worker.copying import Copying
from sendense_agent.worker.written import WrittenBook
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

KEYS = (2000, 2001, 2002)


class Disks(Copying):
    """Three copies that wait; how they end is the test's."""

    def __init__(self) -> None:
        async def say(event: pb.RunBackupResponse) -> None: ...

        super().__init__(None, "job", "web", say, None)  # type: ignore[arg-type]
        self.failing: dict[int, SendenseError] = {}
        self.fail_now = asyncio.Event()
        self.running: set[int] = set()
        self.cleaned: set[int] = set()

    async def _copy(self, session: Any, snapshot: Any, plan: Any, export: Any) -> None:
        self.running.add(plan.disk.key)
        try:
            if plan.disk.key in self.failing:
                await self.fail_now.wait()
                raise self.failing[plan.disk.key]
            await asyncio.Event().wait()
        finally:
            for _ in range(5):  # as ending a process takes a while
                await asyncio.sleep(0)
            self.cleaned.add(plan.disk.key)

    async def copy_all(self) -> None:
        plans: Any = [
            types.SimpleNamespace(
                mode=pb.DISK_MODE_FULL,
                disk=types.SimpleNamespace(key=key, label="d", capacity_bytes=512),
                left=lambda written, sampled: Remainder(Extents(), Extents(), Extents()),
            )
            for key in KEYS
        ]
        exports = [pb.DiskExport(disk_key=key, export_name=f"e{key}", capacity_bytes=512) for key in KEYS]
        opened = pb.OpenExports(exports=exports)
        await self.run(None, None, plans, opened, WrittenBook())  # type: ignore[arg-type]


async def test_a_cancel_lets_every_copy_finish_its_clean_up():
    disks = Disks()
    copying = asyncio.create_task(disks.copy_all())
    while len(disks.running) < len(KEYS):  # noqa: ASYNC110
        await asyncio.sleep(0)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(copying, 5)
    assert disks.cleaned == set(KEYS)


async def test_the_first_failure_ends_the_others_and_is_the_one_that_is_told():
    disks = Disks()
    disks.failing[2001] = SendenseError(Reason.REASON_SOURCE_READ_FAILED, "first", disk=2001)
    copying = asyncio.create_task(disks.copy_all())
    while len(disks.running) < len(KEYS):  # noqa: ASYNC110
        await asyncio.sleep(0)
    disks.fail_now.set()
    with pytest.raises(SendenseError, match="first"):
        await asyncio.wait_for(copying, 5)
    assert disks.cleaned == set(KEYS)


class Listening:
    """A mover that takes a limit, and what happens meanwhile."""

    def __init__(self, copying: Copying, key: int) -> None:
        self.limits: list[int] = []
        self._copying = copying
        self._key = key

    async def limit(self, bytes_per_second: int) -> None:
        self.limits.append(bytes_per_second)
        await asyncio.sleep(0)
        self._copying._movers.clear()  # all disks were done just now


async def test_a_rate_is_shared_by_those_that_run_also_when_they_end_meanwhile():
    copying = Disks()
    movers = [Listening(copying, key) for key in KEYS]
    copying._movers = dict(zip(KEYS, movers, strict=True))  # type: ignore[arg-type]
    await copying.limit(30)
    assert [mover.limits for mover in movers] == [[10], [10], [10]]
    copying._movers = dict(zip(KEYS, movers, strict=True))  # type: ignore[arg-type]
    await copying.limit(2)  # 0 would be no limit at all
    copying._movers = dict(zip(KEYS, movers, strict=True))  # type: ignore[arg-type]
    await copying.limit(0)
    assert [mover.limits for mover in movers] == [[10, 1, 0]] * 3


class Tree:
    """A snapshot that is there, or not."""

    def __init__(self, *, there: bool) -> None:
        self._there = there

    async def exists(self) -> bool:
        return self._there


async def test_rule_27_a_mismatch_counts_only_while_the_snapshot_is_known_to_exist():
    said: list[pb.RunBackupResponse] = []

    async def say(event: pb.RunBackupResponse) -> None:
        said.append(event)

    copying = Copying(None, "job", "web", say, None)  # type: ignore[arg-type]
    mismatch = pb.AuditMismatch(disk_key=2000, extents_bytes=[0, 512])
    with pytest.raises(SendenseError) as lost:
        await copying._take(mismatch, Tree(there=False))  # type: ignore[arg-type]
    assert lost.value.reason == Reason.REASON_SNAPSHOT_LOST
    assert said == []
    await copying._take(mismatch, Tree(there=True))  # type: ignore[arg-type]
    assert [each.audit_mismatch for each in said] == [mismatch]


class Unsure(Tree):
    """vCenter does not answer, until it does."""

    def __init__(self) -> None:
        super().__init__(there=True)
        self.answers = False

    async def exists(self) -> bool:
        if not self.answers:
            raise SendenseError(Reason.REASON_VCENTER_UNREACHABLE, "no answer")
        return await super().exists()


async def test_rule_27_a_mismatch_that_cannot_be_confirmed_is_told_before_the_next_checkpoint():
    said: list[pb.RunBackupResponse] = []

    async def say(event: pb.RunBackupResponse) -> None:
        said.append(event)

    copying, tree = Copying(None, "job", "web", say, None), Unsure()  # type: ignore[arg-type]
    found = [pb.AuditMismatch(disk_key=2000, extents_bytes=[start, 512]) for start in (0, 4096)]
    for mismatch in found:
        await copying._take(mismatch, tree)  # type: ignore[arg-type]
    checkpoint = pb.Checkpoint(disk_key=2000, records=[pb.LedgerRecord(length_bytes=512)])
    with pytest.raises(SendenseError) as unsure:
        await copying._take(checkpoint, tree)  # type: ignore[arg-type]
    assert unsure.value.reason == Reason.REASON_VCENTER_UNREACHABLE
    assert said == []
    tree.answers = True
    await copying._take(checkpoint, tree)  # type: ignore[arg-type]
    assert [each.audit_mismatch for each in said[:-1]] == found
    assert said[-1].checkpoint == checkpoint
    await copying.tell_mismatches(2000)
    assert len(said) == 3, "each is told once"


async def test_a_mismatch_whose_vcenter_refuses_the_agent_ends_the_copy():
    class Refusing(Tree):
        async def exists(self) -> bool:
            raise SendenseError(Reason.REASON_VCENTER_LOGIN_FAILED, "no")

    copying = Copying(None, "job", "web", None, None)  # type: ignore[arg-type]
    with pytest.raises(SendenseError) as refused:
        await copying._take(pb.AuditMismatch(disk_key=2000), Refusing(there=True))  # type: ignore[arg-type]
    assert refused.value.reason == Reason.REASON_VCENTER_LOGIN_FAILED
