# SPDX-License-Identifier: Apache-2.0
"""Enrolling: makes keys, shows them to the hub with an invitation's code, and waits for approval.

The keys are made aside, in the state directory's `enrolment/`, and take their places only when they were
approved: an agent that runs goes on with its old ones until then. Interrupted at any point, the same command
goes on where it was. Private halves never leave this host.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import enrolment_service_pb2 as pb
from sendense.hub.v1 import invitation_service_pb2
from sendense.hub.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from sendense_agent.config import config_before, ssh_key_file
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentIdentity, ensure_agent_keys, parse_ssh_key
from sendense_common.paths import AgentPaths, private_dir
from sendense_common.service import only_one
from sendense_common.tunnel import (
    ENROLMENT_TARGET,
    ENROLMENT_USER,
    Forward,
    Tunnel,
    TunnelConfig,
    dial,
    ensure_key,
)

_ASK_EVERY_S = 1.0
_AGAIN_AFTER_S = 2.0
# A code that could not be shown for so long is no good any more.
_REACHES_WITHIN_S = 900.0
_ANSWER_WITHIN_S = 20.0
_PASSING = frozenset(
    {Reason.REASON_TUNNEL_LOST, Reason.REASON_SERVICE_UNAVAILABLE, Reason.REASON_DEADLINE_EXCEEDED}
)
_SSH_KEY, _LEASE_KEYS, _INVITATION = "ssh_ed25519_key", "lease_keys.pem", "invitation"
_MISREAD = str.maketrans("OIL", "011", "- ")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What the invitation's line says."""

    site: str
    hub_host: str
    hub_port: int
    hub_fingerprint: str
    """Of the hub's host key, "SHA256:…"."""
    code: str

    @property
    def mark(self) -> str:
        """Tells whether keys were made for this invitation; the code itself is kept nowhere."""
        code = self.code.upper().translate(_MISREAD)
        facts = [self.site, self.hub_host, self.hub_port, self.hub_fingerprint, code]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


async def enrol(paths: AgentPaths, asked: Asked, say: Say, *, wait: bool = True) -> bool:
    """Returns when the keys are approved and in their places, with the configuration.

    Args:
        paths: of the agent.
        asked: by the invitation.
        say: tells a person.
        wait: for the approval; otherwise returns as soon as the hub has the keys.

    Returns:
        Whether they were approved.

    Raises:
        SendenseError: INVITATION_INVALID, ENROLMENT_LIMITED, or TUNNEL_REFUSED when the hub is another one.
    """
    private_dir(paths.state)
    with only_one(paths.state / "enrolment.lock", "enrolment"):
        if _is_of(_enrolled_by(paths), asked):
            return True
        aside = _aside(paths, asked)
        identity = _identity(aside, asked.site)
        host_key = await _until_approved(paths, asked, identity, aside, say, wait=wait)
        if host_key:
            _take_place(paths, asked, aside, host_key)
        return bool(host_key)


def _aside(paths: AgentPaths, asked: Asked) -> Path:
    """Where the keys of this invitation wait; new ones if there are none."""
    aside = paths.state / "enrolment"
    if not _is_of(aside / _INVITATION, asked):
        shutil.rmtree(aside, ignore_errors=True)  # of an invitation before
        private_dir(aside)
        (aside / _INVITATION).write_text(asked.mark + "\n")
    return aside


def _enrolled_by(paths: AgentPaths) -> Path:
    return paths.state / "enrolled_by"


def _is_of(file: Path, asked: Asked) -> bool:
    try:
        return file.read_text() == asked.mark + "\n"
    except FileNotFoundError:
        return False


def _identity(aside: Path, site: str) -> AgentIdentity:
    line, _ = parse_ssh_key("ssh_public_key", ensure_key(aside / _SSH_KEY, site))
    return AgentIdentity(site, line, ensure_agent_keys(aside / _LEASE_KEYS).public)


async def _until_approved(
    paths: AgentPaths, asked: Asked, identity: AgentIdentity, aside: Path, say: Say, *, wait: bool
) -> str:
    """The hub's host key when the keys were approved; empty when that is not waited for."""
    config = TunnelConfig(
        asked.hub_host, asked.hub_port, ENROLMENT_USER, aside / _SSH_KEY, asked.hub_fingerprint
    )
    shown, last = False, ""
    give_up_at = asyncio.get_running_loop().time() + _REACHES_WITHIN_S
    while True:
        try:
            async with dial(config) as tunnel, tunnel.forward(ENROLMENT_TARGET, _socket(paths)) as forward:
                async with rpc.connect(_socket(paths)) as channel:
                    while not await _approved(channel, asked, identity, tunnel, forward):
                        if not shown:
                            _say_what_to_compare(asked, identity, say)
                        shown, last = True, ""
                        if not wait:
                            return ""
                        await asyncio.sleep(_ASK_EVERY_S)
                return tunnel.hub_host_key
        except SendenseError as error:
            too_late = not shown and asyncio.get_running_loop().time() > give_up_at
            if error.reason not in _PASSING or too_late:
                raise
            # A connection to enrol does not last: coming again is usual, and worth a word only if it fails.
            if error.message != last and not shown:
                say(f"not yet: {error.message}")
            last = error.message
        await asyncio.sleep(_AGAIN_AFTER_S)


def _socket(paths: AgentPaths) -> Path:
    return private_dir(paths.run) / "enrolment.sock"


async def _approved(
    channel: grpc.aio.Channel,
    asked: Asked,
    identity: AgentIdentity,
    tunnel: Tunnel,
    forward: Forward,
) -> bool:
    """Shows the keys; whether they are the site's now."""
    request = pb.EnrolRequest(
        site_name=asked.site,
        code=asked.code,
        keys=invitation_service_pb2.EnrolmentKeys(
            ssh_public_key=identity.ssh_public_key,
            signing_public_key=identity.keys.signing,
            sealing_public_key=identity.keys.sealing,
        ),
    )
    try:
        answer = await EnrolmentServiceStub(channel).Enrol(request, timeout=_ANSWER_WITHIN_S)
    except grpc.aio.AioRpcError as error:
        said = await tunnel.wait_closed() if tunnel.closed else forward.refusal
        raise said or SendenseError.from_rpc(error, doing="showing keys to the hub") from error
    return answer.state == invitation_service_pb2.INVITATION_STATE_APPROVED


def _say_what_to_compare(asked: Asked, identity: AgentIdentity, say: Say) -> None:
    say(
        f"The hub at {asked.hub_host}:{asked.hub_port} is the right one, and has this agent's public keys.\n"
        f"Their fingerprint, of all three, for the person at the centre to compare:\n\n"
        f"    {identity.fingerprint}\n\n"
        f"There: sendense agent approve {asked.site}\n"
        "Waiting for approval, for an hour at most. Ctrl-C is safe: the same command goes on."
    )


def _take_place(paths: AgentPaths, asked: Asked, aside: Path, host_key: str) -> None:
    """Keys and configuration take their places; repeated after an interruption, it is the same."""
    _put(aside / _LEASE_KEYS, paths.lease_keys_file)
    _put(aside / _SSH_KEY, ssh_key_file(paths))
    _put(aside / f"{_SSH_KEY}.pub", ssh_key_file(paths).with_suffix(".pub"))
    before = config_before(paths)
    replace(
        before,
        agent_id=asked.site,
        hub_host=asked.hub_host,
        hub_port=asked.hub_port,
        hub_host_key=host_key,
    ).save(paths)
    _put(aside / _INVITATION, _enrolled_by(paths))
    shutil.rmtree(aside)


def _put(source: Path, place: Path) -> None:
    """A copy of a file in its place, whole or not at all."""
    hidden = place.with_name(f".{place.name}.new")
    hidden.unlink(missing_ok=True)
    with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    hidden.rename(place)
