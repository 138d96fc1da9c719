# SPDX-License-Identifier: Apache-2.0
"""Deleting points: what is built upon stays, files go before rows, and an interruption is made up for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.integration.hub.kit import Hub
from tests.integration.hub.scripted_agent import MIB, backup, incremental, plan_of
from tests.integration.hub.test_backups import FIRST, THEN, digests, sha256
from tests.integration.repository.kit import noise

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import point_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import points
from sendense_hub.repository import delete_point, open_repository
from sendense_hub.rpc import point_service
from sendense_hub.rpc.point_service import PointService

pytestmark = pytest.mark.integration

LAST = {2000: {2 * MIB: noise(5, 4096)}}


async def chain(hub: Hub) -> list[str]:
    """Three points, the oldest first."""
    made = []
    for script in (
        backup(FIRST, plan_of()),
        backup(THEN, plan_of(incremental())),
        backup(LAST, plan_of(incremental())),
    ):
        hub.agent.script = script
        made.append((await hub.run()).point_id)
    return made


async def delete(hub: Hub, point_id: str) -> int:
    service = PointService(hub.workshop)
    request = pb.DeletePointRequest(point_id=point_id)
    answer: pb.DeletePointResponse = await service.DeletePoint(request, None)  # type: ignore[arg-type]
    return answer.freed_bytes


async def test_a_point_in_the_middle_of_a_chain_stays_and_its_dependants_are_named(hub: Hub):
    first, second, third = await chain(hub)
    for point_id, dependant in ((first, second), (second, third)):
        with pytest.raises(SendenseError) as refused:
            await delete(hub, point_id)
        assert refused.value.reason == Reason.REASON_POINT_HAS_DEPENDANTS
        assert refused.value.metadata["dependants"] == dependant
    expected = {2000: sha256(FIRST[2000], THEN[2000], LAST[2000])}
    assert await digests(hub, third) == expected


async def test_ff18_files_go_before_the_row_and_the_space_is_told(hub: Hub):
    first, second, third = await chain(hub)
    for point_id in (third, second):
        assert await delete(hub, point_id) > 0
        with pytest.raises(SendenseError) as gone:
            await delete(hub, point_id)
        assert gone.value.reason == Reason.REASON_POINT_NOT_FOUND
    assert [each.point_id for each in await hub.points()] == [first]
    assert [Path(each).name for each in hub.repository.directories()] == [first]
    assert await digests(hub, first) == {2000: sha256(FIRST[2000])}
    await delete(hub, first)
    await hub.assert_nothing_left()


async def test_ff18_the_order_is_mark_files_flush_row(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.agent.script = backup(FIRST)
    point_id = (await hub.run()).point_id
    order: list[str] = []

    def tell(where: Any, name: str, what: Any) -> None:
        real = getattr(where, name)

        def told(*arguments: Any, **options: Any) -> Any:
            said = what(*arguments)
            if said and (not order or order[-1] != said):
                order.append(said)
            return real(*arguments, **options)

        monkeypatch.setattr(where, name, told)

    tell(points, "set_deleting", lambda *_: "row: deleting")
    tell(points, "forget", lambda *_: "row: gone")
    tell(Path, "rename", lambda path, target: f"mark: {target.name}")
    tell(Path, "unlink", lambda path, **_: f"file: {path.name}" if path.name.startswith("disk-") else "")
    tell(os, "fsync", lambda descriptor: f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
    await delete(hub, point_id)
    monkeypatch.undo()
    order = [step for step in order if not step.startswith("flush c")]
    assert order[:3] == ["row: deleting", "mark: point.json.deleting", f"flush {point_id}"]
    assert sorted(order[3:5]) == ["file: disk-2000.ledger", "file: disk-2000.qcow2"]
    assert order[5] == f"flush {point_id}"
    assert order[-2:] == ["flush repository", "row: gone"]


async def test_a_deletion_that_fails_keeps_its_row_and_can_be_repeated(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    hub.agent.script = backup(FIRST)
    point_id = (await hub.run()).point_id

    def broken(path: Path, **_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "unlink", broken)
    with pytest.raises(SendenseError) as failed:
        await delete(hub, point_id)
    monkeypatch.undo()
    assert failed.value.reason == Reason.REASON_REPOSITORY_UNAVAILABLE
    assert await hub.points() == [], "it can no longer be restored"
    assert [(row.point_id, row.state) for row in await hub.rows()] == [(point_id, pb.POINT_STATE_DELETING)]
    await delete(hub, point_id)
    await hub.assert_nothing_left()


async def test_a_repository_that_is_not_mounted_loses_neither_row_nor_files(hub: Hub):
    hub.agent.script = backup(FIRST)
    point_id = (await hub.run()).point_id
    root = hub.repository.root
    root.rename(root.with_name("away"))
    root.mkdir()
    with pytest.raises(SendenseError) as refused:
        await delete(hub, point_id)
    assert refused.value.reason == Reason.REASON_REPOSITORY_UNAVAILABLE
    assert [each.point_id for each in await hub.points()] == [point_id]
    root.rmdir()
    root.with_name("away").rename(root)
    assert await digests(hub, point_id) == {2000: sha256(FIRST[2000])}


async def test_a_caller_that_hangs_up_leaves_the_point_locked_until_it_is_gone(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    hub.agent.script = backup(FIRST)
    point_id = (await hub.run()).point_id
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> int:
        began.set()
        await go_on.wait()
        return await delete_point(*arguments)

    monkeypatch.setattr(point_service, "delete_point", slow)
    call = asyncio.create_task(delete(hub, point_id))
    async with asyncio.timeout(20):
        await began.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        with pytest.raises(SendenseError) as busy, hub.workshop.locks.reading([point_id]):
            pass
        assert busy.value.reason == Reason.REASON_POINT_BUSY
        (goes_on,) = [task for task in asyncio.all_tasks() if "PointService._delete" in repr(task.get_coro())]
        go_on.set()
        await goes_on
    await hub.assert_nothing_left()


async def test_a_point_that_is_being_written_is_not_deleted(hub: Hub):
    row = pb.RestorePoint(point_id="p" * 8, job_id="j", repository_name="default", directory="a/b/p")

    def begin(connection: sa.Connection) -> None:
        points.begin(connection, row)

    await hub.catalog.run(begin)
    with pytest.raises(SendenseError) as busy:
        await delete(hub, "p" * 8)
    assert busy.value.reason == Reason.REASON_POINT_BUSY
    assert len(await hub.rows()) == 1


async def test_a_repository_with_another_id_is_not_the_one_that_was_opened(tmp_path: Path):
    repository = await open_repository("default", tmp_path / "r")
    assert repository.space().total_bytes > 0
    marker = tmp_path / "r" / "sendense-repository.json"
    for text in ('{"repository_id": "other"}', "[]", "{"):
        marker.write_text(text)
        with pytest.raises(SendenseError) as other:
            repository.space()
        assert other.value.reason == Reason.REASON_REPOSITORY_UNAVAILABLE
