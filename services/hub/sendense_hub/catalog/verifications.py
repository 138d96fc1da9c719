# SPDX-License-Identifier: Apache-2.0
"""What verifications, exports and backups have found out about the layers of points; it goes with them."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from sendense.hub.v1 import point_service_pb2 as pb
from sendense_hub.catalog.schema import point_disks

_DISK = point_disks.c


def found_right(connection: sa.Connection, point_id: str, begun_us: int) -> None:
    """All of a point was read and is right: what was seen from it, or in it, before that is no more.

    What was found wrong while it was read stays, and its disk is not called right.

    Args:
        connection: of the catalog.
        point_id: the point that was read.
        begun_us: when the reading began.
    """
    connection.execute(
        point_disks.update()
        .where(sa.or_(_DISK.damage_seen_from == point_id, _DISK.point_id == point_id))
        .where(_DISK.damage_time_us <= begun_us)
        .values(damage=None, damage_time_us=None, damage_seen_from=None)
    )
    news = _built_on_damaged(_DISK.damage_time_us > begun_us, believe=False)
    connection.execute(
        point_disks.update()
        .where(_DISK.point_id == point_id, _DISK.key.not_in(_keys(news, point_id)))
        .where(sa.or_(_DISK.verify_time_us.is_(None), _DISK.verify_time_us < begun_us))
        .values(verify_time_us=begun_us)
    )


def found_damaged(
    connection: sa.Connection,
    point_id: str,
    damage: Mapping[str, str],
    message: str,
    time_us: int,
) -> None:
    """Something is wrong; that it, or what is built on it, was found right before does not count any more.

    Args:
        connection: of the catalog.
        point_id: the point that was looked at.
        damage: `point` and `disk` where they are known: whose layer it is. Without a disk it is the point's
            every layer; without a point that the catalog knows, it is the one that was looked at.
        message: what was found.
        time_us: when.
    """
    values = {"damage": message, "damage_time_us": time_us, "damage_seen_from": point_id}
    for owner in (damage.get("point", ""), point_id):
        query = point_disks.update().where(_DISK.point_id == owner).values(**values)
        if "disk" in damage:
            query = query.where(_DISK.key == int(damage["disk"]))
        if connection.execute(query).rowcount:
            _forget_right(connection, point_id)
            return


def _forget_right(connection: sa.Connection, seen_from: str) -> None:
    every = _built_on_damaged(_DISK.damage_seen_from == seen_from, believe=False)
    affected = sa.select(every.c.point_id, every.c.key)
    connection.execute(
        point_disks.update()
        .where(sa.tuple_(_DISK.point_id, _DISK.key).in_(affected))
        .values(verify_time_us=None)
    )


def _keys(affected: sa.CTE, point_id: str) -> sa.Select[tuple[int]]:
    return sa.select(affected.c.key).where(affected.c.point_id == point_id)


def mark(connection: sa.Connection, found: Mapping[str, pb.RestorePoint]) -> None:
    """Writes into points, by ID, what is known of their disks: also what they are built on counts."""
    ids = list(found)
    disks = {(point.point_id, disk.key): disk for point in found.values() for disk in point.disks}
    right = sa.select(_DISK.point_id, _DISK.key, _DISK.verify_time_us).where(
        _DISK.point_id.in_(ids), _DISK.verify_time_us.is_not(None)
    )
    for point_id, key, time_us in connection.execute(right):
        disks[point_id, key].verify_time.FromMicroseconds(time_us)
    if connection.execute(sa.select(_DISK.key).where(_DISK.damage.is_not(None)).limit(1)).first() is None:
        return
    for row in connection.execute(_affected()):
        disk = disks.get((row.point_id, row.key))
        if disk is not None and (not disk.HasField("damage") or row.owner == row.point_id):
            disk.damage.point_id = row.owner
            disk.damage.message = row.damage
            disk.damage.find_time.FromMicroseconds(row.damage_time_us)


def damaged(connection: sa.Connection) -> list[str]:
    """Points with a layer that is damaged or built on one that is."""
    return sorted({row.point_id for row in connection.execute(_affected())})


def _affected() -> sa.Select[tuple[str, int, str, str, int]]:
    """Damaged layers, and all that is built on them and was not found right since."""
    every = _built_on_damaged(sa.true(), believe=True)
    return sa.select(every.c.point_id, every.c.key, every.c.owner, every.c.damage, every.c.damage_time_us)


def _built_on_damaged(which: sa.ColumnElement[bool], *, believe: bool) -> sa.CTE:
    """Damaged layers, and all that is built on them.

    Args:
        which: of the damaged ones.
        believe: what was found right since, all of it, has nothing of the damage, and neither has what is
            built on that.
    """
    own = (
        sa.select(
            _DISK.point_id, _DISK.key, _DISK.point_id.label("owner"), _DISK.damage, _DISK.damage_time_us
        )
        .where(_DISK.damage.is_not(None), which)
        .cte("affected", recursive=True)
    )
    above = point_disks.alias()
    built = sa.select(above.c.point_id, above.c.key, own.c.owner, own.c.damage, own.c.damage_time_us).where(
        above.c.parent_point_id == own.c.point_id, above.c.key == own.c.key
    )
    if believe:
        built = built.where(
            sa.or_(above.c.verify_time_us.is_(None), above.c.verify_time_us <= own.c.damage_time_us)
        )
    return own.union(built)
