# SPDX-License-Identifier: Apache-2.0
"""Snapshots at vCenters that carry this hub's ID: those that no active job has are handed to the sweeper.

Asking costs a login, so a vCenter is asked once after the start of the hub, then every half hour. One whose
site is away is asked when it is back; a password that was refused is not tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from sendense.agent.v1.agent_service_pb2 import FoundSnapshot
from sendense.hub.v1.vcenter_service_pb2 import Vcenter
from sendense_common.acts import Act, Outcome
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, jobs, vcenters
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.domain.reconciling import Fate, fate_of_snapshot, is_due
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

_EVERY_S = 1800.0


class FoundSnapshots:
    """Of all vCenters of a hub."""

    def __init__(self, workshop: Workshop, known: Collection[str]) -> None:
        """Nothing is asked yet.

        Args:
            workshop: of the hub.
            known: vCenters when the hub started. One that is added later holds nothing that was forgotten.
        """
        self._workshop = workshop
        self._not_asked = set(known)
        self._asked_at_s: dict[str, float] = {}

    async def look(self, *, now: bool = False) -> list[Act]:
        """Asks each vCenter whose time has come.

        Args:
            now: all of them, and tell of those that cannot be asked.
        """
        acts: list[Act] = []
        for vcenter in await self._workshop.catalog.run(vcenters.listed):
            if now or self._is_due(vcenter):
                acts += await self._ask(vcenter, told=now)
        return acts

    def _is_due(self, vcenter: Vcenter) -> bool:
        if vcenter.name in self._not_asked:
            return True
        time_s = asyncio.get_running_loop().time()
        return is_due(time_s, self._asked_at_s.setdefault(vcenter.name, time_s), every_s=_EVERY_S)

    async def _ask(self, vcenter: Vcenter, *, told: bool) -> list[Act]:
        workshop = self._workshop
        try:
            workshop.sites.socket(vcenter.site_name)
            self._not_asked.discard(vcenter.name)
            self._asked_at_s[vcenter.name] = asyncio.get_running_loop().time()
            found = await workshop.sites.find_snapshots(vcenter, workshop.catalog.hub_id)
        except SendenseError as error:
            if not told:
                log.info("snapshots at vCenter %s are looked for later: %s", vcenter.name, error)
                return []
            what, where = "snapshots_not_looked_for", f"vCenter {vcenter.name}"
            return [Act(what, where, error.message, Outcome.REPORTED, error.remedy)]
        return await workshop.catalog.run(lambda connection: _hand_over(connection, vcenter, found))


def _hand_over(connection: sa.Connection, vcenter: Vcenter, found: Sequence[FoundSnapshot]) -> list[Act]:
    """What no active job has, to the sweeper. A job that ended since then has its snapshot swept anyway."""
    states = jobs.states(connection, {each.job_id for each in found})
    pending = {each.job_id for each in cleanups.listed(connection)}
    acts = []
    for each in found:
        state = states.get(each.job_id)
        if fate_of_snapshot(job_state=state, pending=each.job_id in pending) is Fate.KEEP:
            continue
        pending.add(each.job_id)
        cleanups.add(
            connection, PendingCleanup(each.job_id, vcenter.name, each.vm_instance_uuid, each.vm_name)
        )
        acts.append(
            Act(
                "snapshot",
                f"{each.snapshot_moref} of VM {each.vm_name} at vCenter {vcenter.name}",
                f"job {each.job_id} {'has ended' if state is not None else 'is not known here'}: "
                "its removal is ordered",
            )
        )
    return acts
