# SPDX-License-Identifier: Apache-2.0
"""Bears witness to the audit logs of all services: their heads are kept in the catalog, and in its copies."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import grpc

from sendense.common.v1 import audit_log_service_pb2 as pb
from sendense.common.v1.audit_log_service_pb2_grpc import AuditLogServiceStub
from sendense_common import rpc
from sendense_common.audit_log import GENESIS, AuditLog, Head, Witness
from sendense_common.audit_log.facts import short
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, sites
from sendense_hub.catalog.audit_heads import AuditHeads
from sendense_hub.clients.sites import Sites

log = logging.getLogger(__name__)

_EVERY_S = 10.0
_ANSWER_WITHIN_S = 10.0
# Of one log. Sockets and memory for so many at once are little; one that hangs holds one place, for so long.
_LOOK_WITHIN_S = 15.0
_AT_ONCE = 32


class AuditWatch:
    """One hub's."""

    def __init__(self, own: AuditLog, catalog: Catalog, sites: Sites, credentials_socket: Path) -> None:
        """What is looked at.

        Args:
            own: the hub's log.
            catalog: keeps what was seen.
            sites: with agents.
            credentials_socket: the one for hubs.
        """
        self.witness = Witness(own, AuditHeads(catalog))
        self.own = own
        self._catalog = catalog
        self._sites = sites
        self._credentials_socket = credentials_socket
        self._failures: dict[str, str] = {}

    async def run(self) -> NoReturn:
        """Goes on until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.witness.watch_own())
            tasks.create_task(self._watch_others())
        raise AssertionError

    async def problems(self) -> dict[str, str]:
        """What is wrong with which log, as far as it is known without reading them."""
        found = {each.log: each.contradiction for each in await self.witness.heads() if each.contradiction}
        if self.own.failure:
            found[self.own.service] = self.own.failure
        return {**found, **self._failures}

    async def look(self) -> None:
        """At the logs of the credentials service and of the agents that are connected, many at once."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def look_at(name: str, socket: Callable[[], Path]) -> None:
            async with places:
                await self._try(name, socket)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._try("credentials", lambda: self._credentials_socket))
            for site in await self._catalog.run(sites.listed):
                socket = functools.partial(self._sites.socket, site.name)
                tasks.create_task(look_at(f"agent:{site.name}", socket))

    async def _watch_others(self) -> NoReturn:
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("audit logs are looked at in %.0f s", _EVERY_S)
            await asyncio.sleep(_EVERY_S)

    async def _try(self, name: str, socket: Callable[[], Path]) -> None:
        """Looks at one log. Whatever its service answers, the others are looked at too."""
        try:
            async with asyncio.timeout(_LOOK_WITHIN_S):
                await self._look_at(socket(), name)
        except TimeoutError:
            log.debug("audit log of %s: nothing was said within %.0f s", name, _LOOK_WITHIN_S)
        except SendenseError as error:
            log.debug("audit log of %s: %s", name, error.message)  # it is not connected
        except Exception:
            log.exception("the audit log of %s is looked at in %.0f s", name, _EVERY_S)

    async def _look_at(self, socket: Path, name: str) -> None:
        async with rpc.connect(socket) as channel:

            async def ask(known_sequence: int) -> tuple[Head, bytes]:
                request = pb.GetHeadRequest(known_sequence=known_sequence)
                answer = await AuditLogServiceStub(channel).GetHead(request, timeout=_ANSWER_WITHIN_S)
                self._failures.pop(name, None)
                if answer.failure:
                    self._failures[name] = short(answer.failure)
                if answer.head.sequence < 0 or len(answer.head.record_hash) != len(GENESIS):
                    self._failures[name] = "its service does not say what its newest record is"
                    raise ValueError(self._failures[name])
                return Head(answer.head.sequence, answer.head.record_hash), answer.known_hash

            try:
                await self.witness.see(name, ask)
            except grpc.aio.AioRpcError as error:
                log.debug("audit log of %s: %s", name, error.details())  # doctor tells of who is away
