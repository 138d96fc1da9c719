# SPDX-License-Identifier: Apache-2.0
"""A snapshot whose making ended badly: removed if it is there, and told as left if nobody can know."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.limits import Limits
from sendense_agent.worker.own_snapshot import OwnSnapshot
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

ANSWERED = SendenseError(Reason.REASON_SNAPSHOT_FAILED, "no", fault="vim.fault.SnapshotFault")
SILENT = SendenseError(Reason.REASON_VCENTER_UNREACHABLE, "connection reset")
LATE = SendenseError(Reason.REASON_DEADLINE_EXCEEDED, "the task did not end")


class Snapshot:
    moref = "snapshot-1"

    def __init__(self) -> None:
        self.removed = False

    async def remove(self) -> None:
        self.removed = True


class Machine:
    def __init__(self, found: list[Snapshot] | SendenseError) -> None:
        self._found = found

    async def own_snapshots(self, hub_id: str, job_ids: set[str]) -> list[Snapshot]:
        if isinstance(self._found, SendenseError):
            raise self._found
        return self._found


@pytest.mark.parametrize(
    ("outcome", "there", "left"),
    [
        (None, True, False),
        (ANSWERED, True, False),
        (ANSWERED, False, False),
        (SILENT, True, False),
        (SILENT, False, True),
        (LATE, True, False),
        (LATE, False, True),
    ],
)
async def test_a_snapshot_that_may_still_come_is_told_as_left(
    outcome: SendenseError | None, there: bool, left: bool
):
    async def make() -> Any:
        await asyncio.sleep(0)
        if outcome is not None:
            raise outcome

    found = [Snapshot()] if there else []
    own = OwnSnapshot(pb.BackupStart(job_id="j", hub_id="h"), Limits(), None, None)  # type: ignore[arg-type]
    await own._remove_unknown(Machine(found), asyncio.create_task(make()))  # type: ignore[arg-type]
    assert own.may_be_left == left
    assert all(each.removed for each in found)


async def test_a_vcenter_that_cannot_be_asked_leaves_the_question_open():
    async def make() -> Any:
        raise SILENT

    own = OwnSnapshot(pb.BackupStart(job_id="j", hub_id="h"), Limits(), None, None)  # type: ignore[arg-type]
    await own._remove_unknown(Machine(SILENT), asyncio.create_task(make()))  # type: ignore[arg-type]
    assert own.may_be_left
