# SPDX-License-Identifier: Apache-2.0
"""Snapshots that ended jobs may have left: removed as soon as their site can be asked."""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.acts import Act, Outcome
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, cleanups, jobs, vcenters
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.domain.job_rules import ACTIVE
from sendense_hub.jobs.guarded_sites import GuardedSites

log = logging.getLogger(__name__)

_EVERY_S = 60.0
_MANY = 10_000


class SnapshotSweeper:
    """Asks agents to remove what ended jobs left."""

    def __init__(self, catalog: Catalog, sites: GuardedSites) -> None:
        self._catalog = catalog
        self._sites = sites
        self._sweeping = asyncio.Lock()

    async def sweep(self, pending: PendingCleanup) -> None:
        """Removes the snapshot of one job, and forgets about it.

        Raises:
            SendenseError: it may still be there.
        """
        catalog = self._catalog
        try:
            vcenter = await catalog.run(lambda connection: vcenters.get(connection, pending.vcenter_name))
        except SendenseError as error:
            if error.reason != Reason.REASON_VCENTER_NOT_FOUND:
                raise
            log.warning(
                "vCenter %s was removed; job %s may have left a snapshot of VM %s there",
                pending.vcenter_name,
                pending.job_id,
                pending.vm_name,
            )
            await catalog.run(lambda connection: cleanups.done(connection, [pending.job_id]))
            return
        cleaned = await self._sites.clean_up(
            vcenter, catalog.hub_id, [(pending.job_id, pending.vm_instance_uuid)]
        )
        if pending.job_id not in cleaned:
            raise SendenseError(
                Reason.REASON_SNAPSHOT_FAILED,
                f"the snapshot of job {pending.job_id} of VM {pending.vm_name} could not be removed",
                vm=pending.vm_name,
            )
        await catalog.run(lambda connection: cleanups.done(connection, [pending.job_id]))

    async def run(self) -> NoReturn:
        """Goes on trying what is pending, until it is cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.round()
            except Exception:
                log.exception("clean-ups are tried again in %.0f s", _EVERY_S)

    async def round(self) -> list[Act]:
        """Tries all that is pending, once; one round follows another."""
        acts = []
        async with self._sweeping:
            for pending in await self._catalog.run(cleanups.listed):
                if await self._is_refused(pending) or await self._is_busy(pending):
                    continue
                where = f"VM {pending.vm_name} at vCenter {pending.vcenter_name}"
                try:
                    await self.sweep(pending)
                    log.info("nothing is left of job %s of VM %s", pending.job_id, pending.vm_name)
                    acts.append(Act("clean_up", where, f"job {pending.job_id} may have left a snapshot"))
                except SendenseError as error:
                    log.warning("cleaning up after job %s: %s", pending.job_id, error)
                    acts.append(Act("clean_up", where, error.message, Outcome.FAILED, error.remedy))
        return acts

    async def _is_busy(self, pending: PendingCleanup) -> bool:
        """Whether a job of this VM runs or waits: it removes dead snapshots before it makes its own."""
        active = await self._catalog.run(
            lambda connection: jobs.listed(connection, states=sorted(ACTIVE), limit=_MANY)
        )
        machine = (pending.vcenter_name, pending.vm_instance_uuid)
        return any((job.vcenter_name, job.vm_instance_uuid) == machine for job in active)

    async def _is_refused(self, pending: PendingCleanup) -> bool:
        """Whether nothing logs in there, which is not worth a line in the log in every round."""
        known = await self._catalog.run(vcenters.listed)
        return any(
            each.name == pending.vcenter_name
            and (each.HasField("login_refused_time") or each.site_name in self._sites.revoked)
            for each in known
        )
