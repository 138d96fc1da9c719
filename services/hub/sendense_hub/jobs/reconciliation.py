# SPDX-License-Identifier: Apache-2.0
"""Catalog, repositories, processes, sockets and snapshots are compared, and what is nobody's goes.

Done when the hub starts, every few minutes, and when somebody asks for it. Whatever cannot be proved to be
nobody's is told and left alone. Points and snapshots of a job that has not ended are the job's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import NoReturn

from sendense.common.v1 import act_pb2
from sendense_common import audit_log
from sendense_common.acts import Act, ActLog, Outcome
from sendense_common.errors import SendenseError
from sendense_hub.catalog import job_plans, sites
from sendense_hub.jobs import recovery, stray_exports, unknown_directories, unsettled_points
from sendense_hub.jobs.found_snapshots import FoundSnapshots
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

_EVERY_S = 180.0
# After the first round: agents have dialled in by then, and jobs that go on have found their snapshots.
_SNAPSHOTS_AFTER_S = 60.0
# A person who waits is answered after so long; what is being removed then is removed all the same.
_SWEEP_WITHIN_S = 300.0


class Reconciler:
    """One hub's; its rounds never overlap."""

    def __init__(self, workshop: Workshop, sweeper: SnapshotSweeper, known_vcenters: Collection[str]) -> None:
        """Args: known_vcenters: when the hub started."""
        self._workshop = workshop
        self._sweeper = sweeper
        self._snapshots = FoundSnapshots(workshop, known_vcenters)
        self._acting = asyncio.Lock()
        self._log = ActLog()
        self._sweeping: asyncio.Task[list[Act]] | None = None

    async def run(self) -> NoReturn:
        """Goes on until it is cancelled."""
        pause_s = _SNAPSHOTS_AFTER_S
        await self._quietly(snapshots=False)
        while True:
            await asyncio.sleep(pause_s)
            await self._quietly(snapshots=True)
            pause_s = _EVERY_S

    async def by_hand(self) -> list[act_pb2.Act]:
        """A whole round, at the sites that are connected too; what it did and found."""
        await audit_log.record("reconcile.order")
        acts = await self._round(snapshots=True, now=True)
        return [*(act.to_message() for act in acts), *await self._at_sites()]

    async def _quietly(self, *, snapshots: bool) -> None:
        try:
            await self._round(snapshots=snapshots)
        except Exception:
            log.exception("reconciliation is tried again in %.0f s", _EVERY_S)

    async def _round(self, *, snapshots: bool, now: bool = False) -> list[Act]:
        workshop = self._workshop
        async with self._acting:
            acts = await stray_exports.end(workshop.exports_dir)
            acts += await recovery.take_up_lost(workshop)
            acts += await unsettled_points.finish(workshop)
            for _, repository in sorted(workshop.repositories.items()):
                acts += await unknown_directories.tidy(workshop, repository)
            acts += [
                Act("job_plan", f"job {job_id}", "the job has ended: nothing goes on with its plan")
                for job_id in await workshop.catalog.run(job_plans.forget_ended)
            ]
            acts += await stray_exports.remove_unfinished(workshop.parts)
            if snapshots:
                acts += await self._snapshots.look(now=now)
            self._log.write(acts)
            for act in acts:
                if act.outcome is Outcome.DONE:
                    who = audit_log.system_actor()
                    await audit_log.record("reconcile.act", subject=act.where, actor=who, what=act.what)
        return [*acts, *await self._swept()] if now else acts

    async def _swept(self) -> list[Act]:
        """What the sweeper could do at once."""
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweeper.round())
        done, _ = await asyncio.wait({self._sweeping}, timeout=_SWEEP_WITHIN_S)
        if done:
            return self._sweeping.result()
        words = f"snapshots are still being removed after {_SWEEP_WITHIN_S:.0f} s; that goes on"
        return [Act("clean_up", "vCenters", words, Outcome.REPORTED)]

    async def _at_sites(self) -> list[act_pb2.Act]:
        acts = []
        for site in await self._workshop.catalog.run(sites.listed):
            with contextlib.suppress(
                SendenseError
            ):  # not connected, or of a version that cannot: see `doctor`
                acts += await self._workshop.sites.reconcile(site.name)
        return acts
