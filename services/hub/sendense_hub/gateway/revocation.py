# SPDX-License-Identifier: Apache-2.0
"""Ends what is no longer permitted.

Pushed revocations are quick; asking again about everything that is open, every one and a half seconds, is
what guarantees it, also for what was revoked while the API or the stream was away. While the API does not
answer, what is open stays open.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from sendense_common.errors import SendenseError
from sendense_common.tunnel import REVERSE_PATH, SUPERSEDED, Owner
from sendense_hub.gateway.authority import Authority, is_refusal
from sendense_hub.gateway.connection import AgentConnection, Roster

log = logging.getLogger(__name__)

_WATCH_AGAIN_S = 0.5


async def watch(authority: Authority, roster: Roster) -> NoReturn:
    """Acts on pushed revocations; comes back whenever the API does."""
    while True:
        try:
            async for revocation in authority.revocations():
                for connection in roster:
                    if revocation.fingerprint and connection.fingerprint == revocation.fingerprint:
                        connection.end("its key was revoked")
                    elif revocation.target:
                        _close_target(connection, revocation.target, "it was revoked")
        except SendenseError as error:
            log.debug("revocations are not pushed now: %s", error)
        await asyncio.sleep(_WATCH_AGAIN_S)


async def recheck(authority: Authority, roster: Roster, every_s: float) -> NoReturn:
    """Asks about everything that is open, again and again."""
    while True:
        await asyncio.sleep(every_s)
        for connection in roster:
            _keep_name(connection)
        try:
            await _recheck_keys(authority, roster)
            await _recheck_targets(authority, roster)
        except SendenseError as error:
            log.debug("nothing was rechecked: %s", error)


def _keep_name(connection: AgentConnection) -> None:
    """The newest connection of an agent owns its reverse path; an older one ends, whoever holds it."""
    if connection.reverse is None or connection.reverse.published.closed:
        return
    owner = connection.reverse.published.owner()
    if owner is Owner.ANOTHER:
        connection.end(SUPERSEDED)
    elif owner is Owner.NOBODY:
        log.warning("%s was removed by somebody; publishing it again", connection.reverse.published.path)
        connection.reverse.publish_again()


async def _recheck_keys(authority: Authority, roster: Roster) -> None:
    for fingerprint in {each.fingerprint for each in roster}:
        try:
            agent_id = await authority.identify(fingerprint)
        except SendenseError as error:
            if not is_refusal(error):
                raise
            agent_id = ""
        for connection in roster:
            if connection.fingerprint == fingerprint and connection.agent_id != agent_id:
                connection.end("its key was revoked")


async def _recheck_targets(authority: Authority, roster: Roster) -> None:
    pairs = {(each.fingerprint, target) for each in roster for target in each.pipes.targets()}
    for fingerprint, target in pairs:
        if target == REVERSE_PATH:
            continue
        try:
            await authority.authorize(fingerprint, target)
        except SendenseError as error:
            if not is_refusal(error):
                raise
            for connection in roster:
                if connection.fingerprint == fingerprint:
                    _close_target(connection, target, error.message)


def _close_target(connection: AgentConnection, target: str, why: str) -> None:
    closed = connection.pipes.close_target(target)
    if closed:
        log.warning("closed %d channels of %s to %s: %s", closed, connection, target, why)
