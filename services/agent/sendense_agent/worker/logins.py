# SPDX-License-Identifier: Apache-2.0
"""User name and password of one operation, opened with a lease for each login and kept for none.

The first lease comes with the operation. When vCenter has forgotten the session, or a disk is to be opened
with VMware's library, the worker asks its hub for another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.worker.saying import Saying
from sendense_common.errors import SendenseError

# The hub may be away for a moment, and lets one login with a credential wait for the other.
_ANSWER_WITHIN_S = 120.0
# What is asked is not kept for a stream that is away.
_ASK_AGAIN_AFTER_S = 3.0


class MoreLeases:
    """Asks the hub of one backup for more leases."""

    def __init__(self, saying: Saying) -> None:
        """Args: saying: to the hub."""
        self._saying = saying
        self._turn = asyncio.Lock()
        self._asked: dict[str, asyncio.Future[pb.LeaseGiven]] = {}

    @contextlib.asynccontextmanager
    async def another(self) -> AsyncIterator[VcenterAccess]:
        """One more, for the login that the block is; one login at a time.

        Raises:
            SendenseError: what the hub says, or VCENTER_SESSION_LOST when it says nothing for two minutes.
        """
        async with self._turn:
            yield await self._ask()
            # The next one may log in with this credential.
            await self._saying.event(pb.RunBackupResponse(logged_in=pb.LoggedInAgain()))

    async def _ask(self) -> VcenterAccess:
        request_id = str(uuid.uuid4())
        asked: asyncio.Future[pb.LeaseGiven] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = asked
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                while not asked.done():
                    wanted = pb.LeaseWanted(request_id=request_id)
                    await self._saying.event(pb.RunBackupResponse(lease_wanted=wanted))
                    await asyncio.wait({asked}, timeout=_ASK_AGAIN_AFTER_S)
        except TimeoutError:
            raise SendenseError(
                Reason.REASON_VCENTER_SESSION_LOST,
                f"to log in again takes another lease, and the hub gave none within {_ANSWER_WITHIN_S:.0f} s",
                remedy="Does the hub run, and the credentials service? The backup goes on when they do.",
            ) from None
        finally:
            del self._asked[request_id]
        given = asked.result()
        if given.HasField("failure"):
            raise SendenseError.from_failure(given.failure)
        return given.vcenter

    def hear(self, given: pb.LeaseGiven) -> None:
        """An answer; what nobody waits for is left to expire."""
        asked = self._asked.get(given.request_id)
        if asked is not None and not asked.done():
            asked.set_result(given)
