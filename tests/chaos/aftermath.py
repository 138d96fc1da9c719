# SPDX-License-Identifier: Apache-2.0
"""After the storm: everything must come back by itself, and nothing may be left over."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tests.chaos.hub import Away
from tests.chaos.stage import SITE, Stage

from sendense.hub.v1 import point_service_pb2
from sendense_common.errors import SendenseError
from sendense_lab.demo import leftovers

STANDING = {"supervisor": 1, "api": 1, "gateway": 2, "agent": 1, "credentials": 1, "vcenter": 1}
"""Processes of a product that has nothing to do."""

_LOOK_AGAIN_S = 2.0
_COMPLETE = int(point_service_pb2.POINT_STATE_COMPLETE)
_ROWS = {
    "half points": f"SELECT count(*) FROM restore_points WHERE state != {_COMPLETE}",
    "jobs that have not ended": "SELECT count(*) FROM jobs WHERE end_time_us IS NULL",
    "clean-ups that are pending": "SELECT count(*) FROM pending_cleanups",
}


async def left(stage: Stage, vms: list[str], *, within_s: float, say: Callable[[str], None]) -> list[str]:
    """What is still left when the time is over; empty as soon as nothing is."""
    deadline = asyncio.get_running_loop().time() + within_s
    told: list[str] = []
    while found := await _left_now(stage, vms):
        if found != told:
            say(f"    still there: {'; '.join(found)}")
            told = found
        if asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(_LOOK_AGAIN_S)
    return []


async def _left_now(stage: Stage, vms: list[str]) -> list[str]:
    try:
        _, points = await stage.hub.listed(1000)
    except (Away, SendenseError) as error:
        return [f"the hub does not answer: {error}"]
    found: list[str] = []
    if not await stage.hub.connected():
        found.append("the agent is not connected")
    for vm in vms:
        state = await stage.lab("state", vm=vm)
        found += [f"snapshot {each['name']} of {vm}" for each in state["snapshots"]]
        found += [f"delta file {name} of {vm}" for name in state["deltas"]]
    if sessions := (await stage.lab("counters"))["sessions"]:
        found.append(f"{sessions} vCenter sessions")
    found += _processes(stage)
    found += leftovers.in_repository(stage.repository, {point.point_id for point in points})
    here = stage.installation
    for directory in (here.hub.run / "x", here.agent(SITE).run / "x", here.agent(SITE).run / "n"):
        found += [f"socket {path}" for path in _files(directory)]
    for directory in (stage.temporary, stage.exports):
        found += [f"file {path}" for path in _files(directory)]
    return found + await _rows(stage)


def _processes(stage: Stage) -> list[str]:
    counted = {kind: len(pids) for kind, pids in stage.processes().items()}
    return [
        f"{count} processes {kind}, {STANDING.get(kind, 0)} expected"
        for kind, count in counted.items()
        if count != STANDING.get(kind, 0)
    ]


def _files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if not path.is_dir()]


_COUNT = """
import json, sqlite3, sys
file, queries = sys.argv[1], json.loads(sys.argv[2])
catalog = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
print(json.dumps({what: catalog.execute(query).fetchone()[0] for what, query in queries.items()}))
"""


async def _rows(stage: Stage) -> list[str]:
    """Of the hub's catalog, read beside it, where it is: SQLite looks through /proc to no other room."""
    file = stage.installation.hub.state / "catalog.sqlite"
    counted = await stage.rooms["hub"].run(sys.executable, "-c", _COUNT, str(file), json.dumps(_ROWS))
    return [f"{count} {what}" for what, count in json.loads(counted).items() if count]
