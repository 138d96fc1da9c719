# SPDX-License-Identifier: Apache-2.0
"""Damage that was found is remembered, shown, and never built upon."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.hub.kit import Hub
from tests.integration.hub.scripted_agent import MIB, backup, incremental, plan_of, planned
from tests.integration.hub.test_backups import FIRST, THEN, TWO
from tests.integration.repository.test_damage import flip_in_disk

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2
from sendense.hub.v1 import point_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import verifications
from sendense_hub.catalog.schema import point_disks
from sendense_hub.domain import times
from sendense_hub.rpc.point_service import PointService

pytestmark = pytest.mark.integration

BOTH = plan_of(incremental(2000), incremental(2001))


async def chain(hub: Hub) -> list[str]:
    """A full and an incremental of two disks, the oldest first."""
    hub.agent.script = backup(FIRST, TWO)
    first = (await hub.run()).point_id
    hub.agent.script = backup(THEN, BOTH)
    return [first, (await hub.run()).point_id]


def layer(hub: Hub, point_id: str, key: int = 2000) -> Path:
    (found,) = hub.repository.root.glob(f"*/*/{point_id}/disk-{key}.qcow2")
    return found


async def verify(hub: Hub, point_id: str) -> SendenseError | None:
    """What is wrong with it."""
    request = pb.VerifyPointRequest(point_id=point_id)
    try:
        reports = PointService(hub.workshop).VerifyPoint(request, None)  # type: ignore[arg-type]
        assert [each.done async for each in reports][-1]
    except SendenseError as error:
        return error
    return None


async def point(hub: Hub, point_id: str) -> pb.RestorePoint:
    return next(each for each in await hub.points() if each.point_id == point_id)


async def damage(hub: Hub, point_id: str) -> dict[int, str]:
    """By disk: whose layer is damaged."""
    disks = (await point(hub, point_id)).disks
    return {disk.key: disk.damage.point_id for disk in disks if disk.HasField("damage")}


async def test_what_a_verification_found_is_remembered_until_a_later_one_finds_all_right(hub: Hub) -> None:
    first, second = await chain(hub)
    assert await verify(hub, second) is None
    assert all(disk.HasField("verify_time") for disk in (await point(hub, second)).disks)
    assert not any(disk.HasField("verify_time") for disk in (await point(hub, first)).disks)
    flip_in_disk(layer(hub, first), MIB // 2)
    found = await verify(hub, second)
    assert found is not None
    assert found.reason == Reason.REASON_POINT_CORRUPT
    for point_id in (first, second):
        assert await damage(hub, point_id) == {2000: first}
    (disk, _) = (await point(hub, second)).disks
    assert disk.damage.message == found.message
    assert await hub.catalog.run(verifications.damaged) == sorted([first, second])
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, first) is None
    assert await damage(hub, first) == await damage(hub, second) == {}
    assert await hub.catalog.run(verifications.damaged) == []


async def right(hub: Hub, point_id: str) -> list[int]:
    """Disks whose verification counts."""
    return [disk.key for disk in (await point(hub, point_id)).disks if disk.HasField("verify_time")]


async def test_what_was_found_right_before_damage_was_found_does_not_count_any_more(hub: Hub) -> None:
    first, second = await chain(hub)
    for point_id in (first, second):
        assert await verify(hub, point_id) is None
        assert await right(hub, point_id) == [2000, 2001]
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, second) is not None
    for point_id in (first, second):
        assert await right(hub, point_id) == [2001], "the disk that nothing was found in"
    # Put back from a copy: the next verification says of what it has read that it is right, and of no more.
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, first) is None
    assert await damage(hub, first) == await damage(hub, second) == {}
    assert (await right(hub, first), await right(hub, second)) == ([2000, 2001], [2001])
    assert await verify(hub, second) is None
    assert await right(hub, second) == [2000, 2001]
    # And broken again.
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, first) is not None
    for point_id in (first, second):
        assert await damage(hub, point_id) == {2000: first}
        assert await right(hub, point_id) == [2001]


async def test_what_is_found_right_after_damage_below_it_is_not_called_damaged(hub: Hub) -> None:
    """What is wrong in the layer below may be covered, or mended since."""
    first, second = await chain(hub)
    hub.agent.script = backup(THEN, BOTH)
    third = (await hub.run()).point_id
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, first) is not None
    assert await damage(hub, third) == {2000: first}
    disk = (await point(hub, first)).disks[0]
    before = disk.damage.find_time.ToMicroseconds() - 1
    await hub.catalog.run(lambda connection: verifications.found_right(connection, second, before))
    assert await damage(hub, second) == {2000: first}, "it was being read when the damage was found"
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, second) is None
    assert await damage(hub, first) == {2000: first}, "nobody has read it whole since"
    assert await damage(hub, second) == await damage(hub, third) == {}
    assert await hub.catalog.run(verifications.damaged) == [first]
    assert await verify(hub, first) is None
    assert await hub.catalog.run(verifications.damaged) == []


@pytest.mark.parametrize("looked_at", [0, 1], ids=["itself", "what is built on it"])
async def test_a_verification_does_not_take_away_damage_that_was_found_while_it_read(
    hub: Hub, looked_at: int
) -> None:
    points = await chain(hub)
    first, second = points
    for point_id in points:
        assert await verify(hub, point_id) is None
    begun_us = times.now_us()
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, points[looked_at]) is not None
    for point_id in points:
        await hub.catalog.run(
            lambda connection, of=point_id: verifications.found_right(connection, of, begun_us)  # type: ignore[misc]
        )
        assert await damage(hub, first) == await damage(hub, second) == {2000: first}
        assert await right(hub, point_id) == [2001], "the other disk was read whole, and nothing was found"
    assert await verify(hub, points[looked_at]) is not None
    flip_in_disk(layer(hub, first), MIB // 2)
    for point_id in points:
        assert await verify(hub, point_id) is None
        assert await right(hub, point_id) == [2000, 2001]
    assert await hub.catalog.run(verifications.damaged) == []


async def test_a_verification_that_ends_after_one_that_began_later_does_not_make_it_older(hub: Hub) -> None:
    first, _ = await chain(hub)
    begun_us = times.now_us()
    assert await verify(hub, first) is None
    before = await point(hub, first)
    await hub.catalog.run(lambda connection: verifications.found_right(connection, first, begun_us))
    assert await point(hub, first) == before


async def test_a_verification_of_before_a_damage_that_an_older_hub_found_does_not_hide_it(hub: Hub) -> None:
    """Such a hub left the time of the verification where it was."""
    first, second = await chain(hub)
    assert await verify(hub, second) is None
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, first) is not None
    query = point_disks.update().where(point_disks.c.point_id == second).values(verify_time_us=1)
    await hub.catalog.run(lambda connection: connection.execute(query).close())
    assert await damage(hub, second) == {2000: first}


async def test_a_damaged_chain_is_not_built_upon_and_the_full_says_why(hub: Hub) -> None:
    first, second = await chain(hub)
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, second) is not None
    hub.agent.script = backup(FIRST, plan_of(planned(2000), incremental(2001)))
    job = await hub.run()
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
    assert [disk.key for disk in hub.agent.starts[-1].previous_disks] == [2001]
    assert [(disk.mode, disk.mode_reason) for disk in job.disks] == [
        ("full", "previous_damaged"),
        ("incremental", ""),
    ]
    assert [(each.code, each.disk_key) for each in job.warnings] == [("chain_unusable", 2000)]
    assert "disk 2000 (Hard disk 2000)" in job.warnings[0].message
    assert first in job.warnings[0].message
    assert [disk.mode_reason for disk in (await point(hub, job.point_id)).disks] == ["previous_damaged", ""]
    assert await damage(hub, job.point_id) == {}
    hub.agent.script = backup(THEN, BOTH)
    assert [disk.mode for disk in (await hub.run()).disks] == ["incremental", "incremental"]


async def test_an_incremental_that_was_demanded_is_refused_with_the_damage_named(hub: Hub) -> None:
    first, second = await chain(hub)
    flip_in_disk(layer(hub, first), MIB // 2)
    assert await verify(hub, first) is not None
    asked = len(hub.agent.starts)
    job = await hub.run(job_pb2.BACKUP_MODE_INCREMENTAL)
    assert job.failure.reason == Reason.REASON_INCREMENTAL_NOT_POSSIBLE
    assert "disk 2000 (Hard disk 2000)" in job.failure.message
    assert first in job.failure.message
    assert job.failure.metadata["cause"] == "previous_damaged"
    assert job.failure.metadata["point"] == second
    assert len(hub.agent.starts) == asked, "before a snapshot was made"


async def test_a_missing_parent_is_remembered_and_is_no_first_backup(hub: Hub) -> None:
    first, second = await chain(hub)
    (layer(hub, first).parent / "point.json").unlink()
    hub.agent.script = backup(FIRST, TWO)
    job = await hub.run()
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
    assert [disk.mode_reason for disk in job.disks] == ["previous_damaged"] * 2
    assert [each.disk_key for each in job.warnings] == [2000, 2001]
    assert await damage(hub, second) == {2000: first, 2001: first}


async def test_what_is_known_of_a_point_goes_with_it(hub: Hub) -> None:
    first, second = await chain(hub)
    flip_in_disk(layer(hub, second), MIB)
    assert await verify(hub, second) is not None
    assert await damage(hub, first) == {}
    request = pb.DeletePointRequest(point_id=second)
    await PointService(hub.workshop).DeletePoint(request, None)  # type: ignore[arg-type]
    assert await hub.catalog.run(verifications.damaged) == []


async def test_a_repository_that_is_not_mounted_is_no_damage(hub: Hub) -> None:
    first, _ = await chain(hub)
    root = hub.repository.root
    root.rename(root.with_name("away"))
    root.mkdir()
    found = await verify(hub, first)
    root.rmdir()
    root.with_name("away").rename(root)
    assert found is not None
    assert found.reason == Reason.REASON_REPOSITORY_UNAVAILABLE
    assert await damage(hub, first) == {}


async def test_a_chain_that_is_as_long_as_it_may_be_is_followed_by_a_full(hub: Hub) -> None:
    first, second = await chain(hub)
    object.__setattr__(hub.workshop, "longest_chain", 2)
    hub.agent.script = backup(FIRST, TWO)
    refused = await hub.run(job_pb2.BACKUP_MODE_INCREMENTAL)
    assert refused.failure.metadata["cause"] == "chain_too_long"
    job = await hub.run()
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
    assert [(disk.mode, disk.mode_reason) for disk in job.disks] == [("full", "chain_too_long")] * 2
    assert list(job.warnings) == []
    hub.agent.script = backup(THEN, BOTH)
    assert [disk.mode for disk in (await hub.run()).disks] == ["incremental", "incremental"]
    assert (await point(hub, first)).dependant_point_ids == [second]
