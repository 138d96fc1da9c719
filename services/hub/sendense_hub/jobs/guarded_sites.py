# SPDX-License-Identifier: Apache-2.0
"""Sites whose vCenters lock accounts: a password that was refused is not tried again by anything.

Logins with one credential go one after another, so that several jobs at once do not each try a password that
the first of them finds refused. After a refusal nothing logs in until the password was changed or tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import sqlalchemy as sa

from sendense.agent.v1 import agent_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1.vcenter_service_pb2 import Vcenter
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, refused_logins, sites, vcenters
from sendense_hub.catalog.refused_logins import RefusedLogin
from sendense_hub.clients.leases import Leases
from sendense_hub.clients.sites import Sites
from sendense_hub.domain.lease_rate import LeasesOfJobs

_REFUSED = frozenset({Reason.REASON_VCENTER_LOGIN_FAILED, Reason.REASON_VCENTER_ACCOUNT_LOCKED})
# A login that has not been answered for so long hangs; the next one is not kept waiting for it.
_LOGIN_WITHIN_S = 30.0


class Turn:
    """One login that is on its way."""

    def __init__(self, lock: asyncio.Lock) -> None:
        """Args: lock: held."""
        self._lock: asyncio.Lock | None = lock
        self._timer = asyncio.get_running_loop().call_later(_LOGIN_WITHIN_S, self.over)

    def over(self) -> None:
        """Its outcome is known: the next one may log in. Twice is once."""
        self._timer.cancel()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class GuardedSites(Sites):
    """All of a hub's ways to a vCenter."""

    def __init__(self, agents_dir: Path, leases: Leases, catalog: Catalog) -> None:
        """Sites as they are connected.

        Args:
            agents_dir: holds `<site>.sock` while a site is connected.
            leases: from the credentials service.
            catalog: keeps what was refused.
        """
        super().__init__(agents_dir, leases)
        self._catalog = catalog
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._lifted_at: dict[str, float] = {}
        self.leases_of_jobs = LeasesOfJobs(time.monotonic)
        """How many more than the first of each attempt."""

    async def know_revoked(self) -> None:
        """Reads from the catalog which sites were revoked."""
        known = await self._catalog.run(sites.listed)
        self.revoked = {site.name for site in known if site.HasField("revoke_time")}

    @contextlib.asynccontextmanager
    async def login(self, vcenter: Vcenter, *, testing: bool = False) -> AsyncIterator[Turn]:
        """Around whatever logs in. A refusal that comes out of the block is kept.

        Args:
            vcenter: where.
            testing: whether this is a person's wish to try.

        Raises:
            SendenseError: VCENTER_LOGIN_FAILED, without a login, when it was refused before.
        """
        credential_id = vcenter.credential_id
        await self._turns[credential_id].acquire()
        turn = Turn(self._turns[credential_id])
        began = asyncio.get_running_loop().time()
        try:
            if not testing:
                refused = await self._catalog.run(
                    lambda connection: refused_logins.get(connection, credential_id)
                )
                if refused is not None:
                    raise _still_refused(vcenter.name, refused)
            try:
                yield turn
            except SendenseError as error:
                # A password that was changed since then was not the one that was refused.
                changed = self._lifted_at.get(credential_id, began) > began
                if error.reason in _REFUSED and not changed:
                    await self._block(vcenter, error)
                raise
        finally:
            turn.over()

    async def _block(self, vcenter: Vcenter, refusal: SendenseError) -> None:
        def transaction(connection: sa.Connection) -> None:
            refused_logins.refuse(connection, vcenter.credential_id, vcenter.name, refusal.message)
            audit_log.record_blocking(
                "credential.block",
                subject=vcenter.credential_id,
                actor=audit_log.system_actor(),
                vcenter=vcenter.name,
                reason=refusal.reason_name,
            )

        await self._catalog.run(transaction)

    async def now(self, vcenter_name: str) -> Vcenter:
        """A vCenter as it is kept now; VCENTER_NOT_FOUND."""
        return await self._catalog.run(lambda connection: vcenters.get(connection, vcenter_name))

    async def lift(self, vcenter_name: str) -> None:
        """The password of a vCenter was changed, or works.

        Raises:
            SendenseError: VCENTER_NOT_FOUND.
        """
        vcenter = await self._catalog.run(lambda connection: vcenters.get(connection, vcenter_name))
        self._lifted_at[vcenter.credential_id] = asyncio.get_running_loop().time()

        def transaction(connection: sa.Connection) -> None:
            if refused_logins.lift(connection, vcenter.credential_id):
                audit_log.record_blocking(
                    "credential.unblock", subject=vcenter.credential_id, vcenter=vcenter_name
                )

        await self._catalog.run(transaction)

    async def test_vcenter(self, vcenter: Vcenter) -> pb.TestVcenterResponse:
        """Has the agent log in once, whatever was refused before."""
        async with self.login(vcenter, testing=True):
            answer = await super().test_vcenter(vcenter)
        await self.lift(vcenter.name)
        return answer

    async def check_machine(
        self, vcenter: Vcenter, hub_id: str, instance_uuid: str, name: str
    ) -> list[pb.MachineFinding]:
        """See `Sites`."""
        async with self.login(vcenter):
            return await super().check_machine(vcenter, hub_id, instance_uuid, name)

    async def virtual_machines(self, vcenter: Vcenter) -> tuple[str, list[pb.VirtualMachine]]:
        """See `Sites`."""
        async with self.login(vcenter):
            return await super().virtual_machines(vcenter)

    async def clean_up(self, vcenter: Vcenter, hub_id: str, snapshots: list[tuple[str, str]]) -> set[str]:
        """See `Sites`."""
        async with self.login(vcenter):
            return await super().clean_up(vcenter, hub_id, snapshots)

    async def find_snapshots(self, vcenter: Vcenter, hub_id: str) -> list[pb.FoundSnapshot]:
        """See `Sites`."""
        async with self.login(vcenter):
            return await super().find_snapshots(vcenter, hub_id)

    async def reset_tracking(
        self, vcenter: Vcenter, hub_id: str, instance_uuid: str, name: str, reset_id: str
    ) -> None:
        """See `Sites`."""
        async with self.login(vcenter):
            await super().reset_tracking(vcenter, hub_id, instance_uuid, name, reset_id)


def _still_refused(vcenter_name: str, refused: RefusedLogin) -> SendenseError:
    moment = datetime.datetime.fromtimestamp(refused.time_us / 1e6, datetime.UTC)
    since = moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    return SendenseError(
        Reason.REASON_VCENTER_LOGIN_FAILED,
        f"vCenter {vcenter_name} refused the user name or password on {since}, and they were neither changed "
        f"nor tested since: nothing logs in with them, for accounts get locked ({refused.message})",
        remedy="Change them: "
        f"`sendense vcenter password {vcenter_name} --username USER --password-file FILE`; "
        f"or, if they are right, try them: `sendense vcenter test {vcenter_name}`.",
        retryable=False,
        vcenter=vcenter_name,
        refused_since=moment.isoformat(timespec="seconds"),
    )
