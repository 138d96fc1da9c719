# SPDX-License-Identifier: Apache-2.0
"""The one snapshot of a backup: found or made, looked after while it exists, and removed, or left on purpose.

It is left only to a later attempt of the same job, and only when `stays` is set. Whatever else happens, also
while it is made, it is removed, or `may_be_left` says that it may be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1 import permits_pb2
from sendense_agent.domain.limits import Limits
from sendense_agent.domain.resuming import why_not_again
from sendense_agent.vsphere import Machine, Session, Snapshot, Space, datastores_of, place, space_on
from sendense_agent.worker.permits import Permits
from sendense_agent.worker.plan import disk_now
from sendense_agent.worker.saying import Saying
from sendense_agent.worker.watch import SnapshotWatch, below_floor
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_common.undisturbed import undisturbed

log = logging.getLogger(__name__)


class OwnSnapshot:
    """Of one attempt."""

    def __init__(self, start: pb.BackupStart, limits: Limits, saying: Saying, permits: Permits) -> None:
        self._start = start
        self._limits = limits
        self._saying = saying
        self._permits = permits
        self.must_go: asyncio.Future[SendenseError] = asyncio.get_running_loop().create_future()
        """Why it must not stay any longer."""
        self.stays = start.HasField("resume")
        """Whether it is left to a later attempt. A block that begins with it says so anew."""
        self.may_be_left = start.HasField("resume")
        """Whether it may exist when this attempt has ended."""

    async def found(self, machine: Machine) -> Snapshot | None:
        """That of an earlier attempt, if it can be read again. What else this job or dead ones left, goes."""
        start = self._start
        own = await machine.own_snapshots(start.hub_id, {start.job_id})
        again = await self._again(own) if start.HasField("resume") else None
        dead = {each.job_id for each in start.dead_snapshots} - {start.job_id}
        for snapshot in [*own, *(await machine.own_snapshots(start.hub_id, dead) if dead else [])]:
            if snapshot is not again:
                log.info("removing the snapshot %s that an earlier attempt or job left", snapshot.moref)
                await snapshot.remove()
        self.may_be_left = again is not None
        await machine.refresh()
        return again

    async def _again(self, own: list[Snapshot]) -> Snapshot | None:
        resume, why = self._start.resume, "it is gone"
        for snapshot in own:
            if snapshot.moref == resume.snapshot_moref:
                await snapshot.load()
                disks = {disk.key: disk_now(disk) for disk in snapshot.disks}
                why = why_not_again(resume, snapshot.moref, disks)
                if not why:
                    if self._start.quiesce == pb.QUIESCE_MODE_OFF:
                        snapshot.quiesce_result = "not_requested"
                    return snapshot
        await self._saying.warn(
            "snapshot_replaced",
            f"The snapshot that was read before the interruption cannot be read again: {why}. A new one is "
            "made, of all disks; what changed meanwhile is copied again.",
        )
        return None

    @contextlib.asynccontextmanager
    async def held(
        self, session: Session, machine: Machine, found: Snapshot | None
    ) -> AsyncIterator[Snapshot]:
        """A snapshot while the block runs, and for as long a place on its datastores.

        Args:
            session: to the vCenter.
            machine: the VM.
            found: is used; None: a new one is made.
        """
        async with contextlib.AsyncExitStack() as held:
            if found is None:
                await held.enter_async_context(self._place(session, machine))
                await self._room(session, machine)
                await self._saying.phase(pb.AGENT_PHASE_SNAPSHOT)
                snapshot = await held.enter_async_context(self._made(machine))
                await held.enter_async_context(self._watched(session, machine, snapshot))
            else:
                # It is there whether there is a place for it or not, so it is looked after first.
                await self._saying.phase(pb.AGENT_PHASE_SNAPSHOT)
                snapshot = await held.enter_async_context(self._removed_or_left(found))
                await held.enter_async_context(self._watched(session, machine, snapshot))
                await held.enter_async_context(self._place(session, machine))
            self.stays = False
            yield snapshot

    @contextlib.asynccontextmanager
    async def _place(self, session: Session, machine: Machine) -> AsyncIterator[None]:
        """Waits until each datastore of the VM may have one snapshot more."""
        stores = [await place(session, each) for each in datastores_of(machine.devices)]
        async with self._permits.held(permits_pb2.PERMIT_KIND_DATASTORE_SNAPSHOT, stores):
            yield

    async def _room(self, session: Session, machine: Machine) -> None:
        """Raises DATASTORE_FULL unless there is room for a snapshot."""
        await machine.refresh()  # disks may have come and gone meanwhile
        spaces = [await space_on(session, each) for each in datastores_of(machine.devices)]
        outcome = f"no snapshot of VM {machine.name} was made"
        if full := below_floor(spaces, self._limits, machine.name, outcome):
            raise full

    @contextlib.asynccontextmanager
    async def _watched(self, session: Session, machine: Machine, snapshot: Snapshot) -> AsyncIterator[None]:
        """Says when the snapshot must go, also when nobody can be asked."""
        stores = datastores_of(machine.devices)

        async def spaces() -> list[Space]:
            return [await space_on(session, each) for each in stores]

        watch = SnapshotWatch(
            self._limits, machine.name, spaces, self._saying.warn, age_s=await snapshot.age_s()
        )

        async def look() -> None:
            try:
                must_end = await watch.run()
            except Exception:
                log.exception("job %s: nobody looks after its snapshot any more", self._start.job_id)
                raise
            log.warning("job %s: %s", self._start.job_id, must_end)
            self.must_go.set_result(must_end)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _made(self, machine: Machine) -> AsyncIterator[Snapshot]:
        """One snapshot, gone when the block ends, whatever happens in it or while it is made."""
        start = self._start
        making = asyncio.create_task(machine.create_snapshot(start.hub_id, start.job_id, start.quiesce))
        try:
            with telemetry.span("create snapshot"):
                snapshot = await asyncio.shield(making)
        except BaseException:
            # vSphere may have made it, or may go on making it, and nobody else would know of it.
            await undisturbed(self._remove_unknown(machine, making))
            raise
        async with self._removed_or_left(snapshot):
            yield snapshot

    @contextlib.asynccontextmanager
    async def _removed_or_left(self, snapshot: Snapshot) -> AsyncIterator[Snapshot]:
        try:
            yield snapshot
        finally:
            if self.stays:
                self.may_be_left = True
                log.info("the snapshot %s stays for a later attempt", snapshot.moref)
            else:
                with telemetry.span("remove snapshot"):
                    await undisturbed(self._remove(snapshot))

    async def _remove(self, snapshot: Snapshot) -> None:
        self.may_be_left = True
        try:
            await snapshot.remove()
        except SendenseError as error:
            log.error("the snapshot %s was not removed: %s", snapshot.moref, error)
            await self._saying.warn("snapshot_not_removed", error.message)
        else:
            self.may_be_left = False

    async def _remove_unknown(self, machine: Machine, making: asyncio.Task[Snapshot]) -> None:
        """Removes what a call that failed, or was not waited for, may have made."""
        await asyncio.wait({making})
        self.may_be_left = True
        try:
            found = await machine.own_snapshots(self._start.hub_id, {self._start.job_id})
            left = not found and not _is_vsphere_answer(making)  # the task may still run, and make it later
            for snapshot in found:
                await self._remove(snapshot)
                left |= self.may_be_left
            self.may_be_left = left
        except SendenseError as error:
            log.error("whether there is a snapshot of job %s is not known: %s", self._start.job_id, error)


def _is_vsphere_answer(making: asyncio.Task[Snapshot]) -> bool:
    """Whether it ended by a word of vSphere's, not by a connection or a deadline."""
    error = making.exception()
    return error is None or (isinstance(error, SendenseError) and "fault" in error.metadata)
