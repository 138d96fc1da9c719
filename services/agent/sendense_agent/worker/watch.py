# SPDX-License-Identifier: Apache-2.0
"""When a snapshot must not be made, and when one that exists must go: full datastores, and age.

The agent alone decides this, for it must work with the tunnel down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.limits import GIB, Limits
from sendense_agent.vsphere import Space
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

Spaces = Callable[[], Awaitable[list[Space]]]
Warn = Callable[[str, str], Awaitable[None]]
_CONFIGURE = "sendense-agent configure --state DIR --site SITE --hub HOST:PORT --hub-key LINE"
_MAKE_ROOM = f"Make room there, or lower the floor: `{_CONFIGURE} --floor-gib GIB`."


def below_floor(spaces: Iterable[Space], limits: Limits, vm_name: str, outcome: str) -> SendenseError | None:
    """DATASTORE_FULL for the first datastore that has too little; one that cannot be seen says nothing.

    Args:
        spaces: of the VM's datastores.
        limits: of the site.
        vm_name: for the message.
        outcome: what is done about it, for the message.
    """
    for space in spaces:
        floor = limits.floor(space.capacity_bytes)
        if space.accessible and space.free_bytes < floor:
            return SendenseError(
                Reason.REASON_DATASTORE_FULL,
                f"datastore {space.name} has {_size(space.free_bytes)} free, less than the {_size(floor)} "
                f"that must stay free there: {outcome}",
                remedy=_MAKE_ROOM,
                vm=vm_name,
                datastore=space.name,
                free_bytes=space.free_bytes,
                floor_bytes=floor,
            )
    return None


class SnapshotWatch:
    """Looks after one snapshot for as long as it exists."""

    def __init__(
        self,
        limits: Limits,
        vm_name: str,
        spaces: Spaces,
        warn: Warn,
        clock: Callable[[], float] = time.monotonic,
        *,
        age_s: float = 0.0,
    ) -> None:
        """Begins now.

        Args:
            limits: of the site.
            vm_name: for messages.
            spaces: asks for the space on the VM's datastores.
            warn: says something that a person should know.
            clock: seconds.
            age_s: of the snapshot.
        """
        self._limits = limits
        self._vm_name = vm_name
        self._spaces = spaces
        self._warn = warn
        self._clock = clock
        self._began = clock() - age_s
        self._warned = False

    async def run(self) -> SendenseError:
        """Returns why the snapshot must go: DATASTORE_FULL or SNAPSHOT_TOO_OLD."""
        while True:
            await asyncio.sleep(self._pause_s())
            if (too_old := await self._too_old()) is not None:
                return too_old
            if (full := await self._full()) is not None:
                return full

    def _pause_s(self) -> float:
        """To the next look at the datastores, or to an age that matters."""
        age_s, most_s = self._clock() - self._began, self._limits.max_snapshot_age_s
        ages = [most_s / 2, most_s]
        return min([self._limits.look_every_s, *(each - age_s for each in ages if each > age_s)])

    async def _too_old(self) -> SendenseError | None:
        age_s, most_s = self._clock() - self._began, self._limits.max_snapshot_age_s
        if age_s >= most_s:
            return SendenseError(
                Reason.REASON_SNAPSHOT_TOO_OLD,
                f"the snapshot of VM {self._vm_name} is {_hours(age_s)} old, which is the maximum: "
                "the backup was stopped, and its snapshot goes",
                remedy="Find out why it takes so long. The age is set at the site: "
                f"`{_CONFIGURE} --max-snapshot-age HOURS`.",
                vm=self._vm_name,
            )
        if age_s >= most_s / 2 and not self._warned:
            self._warned = True
            await self._warn(
                "snapshot_old",
                f"Its snapshot is {_hours(age_s)} old; at {_hours(most_s)} the agent removes it, "
                "and the backup fails.",
            )
        return None

    async def _full(self) -> SendenseError | None:
        try:
            spaces = await self._spaces()
        except SendenseError as error:
            log.warning("free space of the datastores of VM %s: %s", self._vm_name, error)
            return None  # the copy itself will meet what is wrong
        outcome = (
            f"the backup of VM {self._vm_name} was stopped, so that its snapshot does not fill the datastore"
        )
        return below_floor(spaces, self._limits, self._vm_name, outcome)


def _size(count_bytes: int) -> str:
    return f"{count_bytes / GIB:.1f} GiB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 360 else f"{seconds:.0f} s"
