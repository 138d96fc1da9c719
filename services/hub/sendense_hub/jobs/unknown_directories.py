# SPDX-License-Identifier: Apache-2.0
"""Directories of points that no row of the catalog speaks of.

Of these, only half points of ended jobs of this very hub are removed; whatever else there is may be another
hub's, or a person's, and is told.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from sendense_common.acts import Act, Outcome
from sendense_common.errors import SendenseError
from sendense_hub.catalog import jobs, points
from sendense_hub.domain.reconciling import Fate, fate_of_half_point
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import Repository, delete_point, owner, scratch
from sendense_hub.repository.layout import CATALOGS, DELETING, ID

_SCAN = "`sendense repository scan {name}` takes it into the catalog."
_LOOK = "`sendense repository scan {name}` says more. If no hub writes there, it can be removed."


async def tidy(workshop: Workshop, repository: Repository) -> list[Act]:
    """Looks at one repository."""
    catalog, name = workshop.catalog, repository.name
    try:
        # In this order: a directory is made after its row, and is gone before its row is.
        await asyncio.to_thread(repository.space)
        there = await asyncio.to_thread(lambda: list(_directories(repository.root)))
        known = await catalog.run(lambda connection: points.all_directories(connection, name))
        unknown = [directory for directory in there if directory not in known]
        acts = [act for directory in unknown for act in await _look_at(workshop, repository, directory)]
        await asyncio.to_thread(repository.space)
    except (SendenseError, OSError) as error:
        remedy = error.remedy if isinstance(error, SendenseError) else ""
        return [Act("repository", name, f"it cannot be looked at: {error}", Outcome.FAILED, remedy)]
    return acts


def _directories(root: Path) -> Iterator[str]:
    """Where points may be, relative to the repository; links are not followed. Blocks."""
    for vcenter in _below(root):
        if vcenter == CATALOGS:
            continue
        for machine in _below(root / vcenter):
            for point in _below(root / vcenter / machine):
                yield f"{vcenter}/{machine}/{point}"


def _below(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(
                entry.name
                for entry in entries
                if ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )
    except FileNotFoundError:  # deleted meanwhile
        return []


async def _look_at(workshop: Workshop, repository: Repository, directory: str) -> list[Act]:
    path = repository.point_path(directory)
    try:
        names = {entry.name for entry in await asyncio.to_thread(lambda: list(path.iterdir()))}
    except FileNotFoundError:
        return []
    where = f"{repository.name}:{directory}"
    if repository.has_mark(directory):
        why = "it is complete, and the catalog does not know it"
        return [Act("unlisted_point", where, why, Outcome.REPORTED, _SCAN.format(name=repository.name))]
    found = await asyncio.to_thread(owner.read, path)
    states = {}
    if found is not None:
        job_id = found.job_id
        states = await workshop.catalog.run(lambda connection: jobs.states(connection, [job_id]))
    fate = fate_of_half_point(
        hub_id=workshop.catalog.hub_id,
        owner_hub_id=found.hub_id if found else "",
        job_state=states.get(found.job_id) if found else None,
        only_ours=all(scratch.is_of_half_point(name) for name in names),
    )
    if fate is Fate.KEEP:
        return []
    if fate is Fate.REMOVE and found is not None:
        await delete_point(repository, directory)
        return [
            Act("half_point", where, f"job {found.job_id} has ended, and the catalog knows no such point")
        ]
    why = "its deletion was not finished" if DELETING in names else "it has no commit mark"
    if found is None:
        whose = "nothing says whose it is"
    elif found.hub_id != workshop.catalog.hub_id:
        whose = f"hub {found.hub_id} began it"
    elif found.job_id not in states:
        whose = f"job {found.job_id} is not known here"
    else:
        whose = "there are files in it that are no hub's"
    return [
        Act(
            "unknown_directory",
            where,
            f"{why}, the catalog does not know it, and {whose}",
            Outcome.REPORTED,
            _LOOK.format(name=repository.name),
        )
    ]
