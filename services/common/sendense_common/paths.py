# SPDX-License-Identifier: Apache-2.0
"""Where an installation keeps its things: one state directory, one directory for sockets.

A unix socket's path may have at most 107 bytes, and people keep state in deep directories. Where the state
directory is too deep, sockets live in a short private directory whose name is derived from it, so that every
process finds them by the state directory alone. It goes with the last process that serves there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

# 107 bytes less the longest name below it and the suffix that a hidden, not yet published socket has.
_LONGEST_RUN_DIR_BYTES = 40


def private_dir(path: Path) -> Path:
    """Makes `path` (with parents) as a directory that only this user can enter, and returns it.

    Raises:
        SendenseError: INVALID_REQUEST when it cannot be made, or cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        problem = "" if os.access(path, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"the directory {path} cannot be used: {problem}",
            remedy="Name a directory that this user can write to.",
        )
    return path


def open_to_group(path: Path, group: int, mode: int) -> None:
    """Lets a group, by its number, use what is this user's and private so far.

    Raises:
        SendenseError: INVALID_REQUEST when it is not this user's, or this user is not in the group.
    """
    try:
        os.chown(path, -1, group)
        path.chmod(mode)
    except OSError as error:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"{path} cannot be opened to group {group}: {error.strerror}",
            remedy="Run the service as a member of that group, with a directory of its own for sockets.",
        ) from error


def runtime_dir(state: Path) -> Path:
    """The directory for the sockets of the installation at `state`, for whoever looks for what serves there.

    None is made: commands are given for installations that do not run, or not any more. A short one that is
    missing is not named either, for anybody could put theirs in its place before it is looked into.

    Raises:
        SendenseError: INTERNAL when the short directory is there and not a private one of this user.
    """
    near, short = _places(state)
    return short if short is not None and _is_there(short) else near


@contextlib.contextmanager
def made_runtime_dir(state: Path, chosen: Path | None = None) -> Iterator[Path]:
    """The same, for who serves there: made if it is missing, removed by the last one if nothing is in it.

    Args:
        state: of the installation.
        chosen: the directory that a person named instead, if one did: left as it is.

    Raises:
        SendenseError: see `runtime_dir` and `private_dir`.
    """
    if chosen is not None:
        yield chosen
        return
    near, short = _places(state)
    place = short or near
    held = _held(place, in_tmp=short is not None)
    try:
        yield place
    finally:
        try:
            with contextlib.suppress(BlockingIOError):  # another one serves there, or is about to
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_empty(place)
        finally:
            os.close(held)


def _held(place: Path, *, in_tmp: bool) -> int:
    """A descriptor of the directory, with a lock that keeps others from removing it."""
    while True:
        private_dir(place)
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it at this moment
            held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_SH)
                if (not in_tmp or _is_there(place)) and os.path.samestat(os.fstat(held), place.stat()):
                    return held
            except BaseException:
                os.close(held)
                raise
            os.close(held)


def _places(state: Path) -> tuple[Path, Path | None]:
    """(below the state directory, the short one if that is too deep)."""
    near = state.resolve() / "run"
    if len(os.fsencode(near)) <= _LONGEST_RUN_DIR_BYTES:
        return near, None
    digest = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:12]
    return near, Path(tempfile.gettempdir()) / f"sendense-{os.getuid()}-{digest}"


def _is_there(short: Path) -> bool:
    try:
        facts = short.lstat()
    except FileNotFoundError:
        return False
    if facts.st_uid != os.getuid() or not stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o077:
        raise SendenseError(
            Reason.REASON_INTERNAL,
            f"{short} should be a private directory of this user and is not",
            remedy="Remove it, or use a state directory with a shorter path.",
        )
    return True


def remove_empty(directory: Path) -> None:
    """Removes a directory and those below it as far as there is nothing in them."""
    for path in sorted(directory.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        directory.rmdir()


@dataclass(frozen=True)
class HubPaths:
    """Files of a hub."""

    state: Path
    """Kept: databases, host key, repository."""
    run: Path
    """Gone after a reboot: sockets."""

    @property
    def audit_log_dir(self) -> Path:
        """Who did what at the hub (`audit_log`)."""
        return self.state / "audit-log"

    @property
    def api_socket(self) -> Path:
        """For operators."""
        return self.run / "api.sock"

    @property
    def authorization_socket(self) -> Path:
        """For gateways."""
        return self.run / "authz.sock"

    @property
    def enrolment_socket(self) -> Path:
        """For agents that nobody knows yet; nothing else is served there."""
        return self.run / "enrol.sock"

    @property
    def telemetry_socket(self) -> Path:
        """Takes spans (OTLP) from the other processes."""
        return self.run / "telemetry.sock"

    @property
    def agents_dir(self) -> Path:
        """Reverse sockets: `<agent_id>.sock`."""
        return self.run / "a"

    @property
    def exports_dir(self) -> Path:
        """qemu-nbd sockets: `<export>.sock`."""
        return self.run / "x"

    @property
    def unfinished_exports_dir(self) -> Path:
        """Links to files that are being written somewhere."""
        return self.state / "unfinished-exports"

    @property
    def endpoint_file(self) -> Path:
        """`host:port` that agents dial, written when the listener is open."""
        return self.run / "ssh-endpoint"

    @property
    def api_endpoint_file(self) -> Path:
        """`host:port` that operators connect to, while the API is served there."""
        return self.run / "api-endpoint"

    @property
    def ssh_limits_file(self) -> Path:
        """One line: how many connections the gateways take from whom."""
        return self.run / "ssh-limits"

    @property
    def host_key_file(self) -> Path:
        """SSH host key (private); the public half is beside it with `.pub`."""
        return self.state / "ssh_host_ed25519_key"


@dataclass(frozen=True)
class CredentialsPaths:
    """Files of a credentials service."""

    state: Path
    """Kept: database and, with the local provider, the key-encryption keys."""
    run: Path
    """Sockets."""

    @property
    def database_file(self) -> Path:
        """SQLite: sealed secrets, agents' public keys, leases."""
        return self.state / "credentials.sqlite"

    @property
    def audit_log_dir(self) -> Path:
        """Who did what with credentials (`audit_log`)."""
        return self.state / "audit-log"

    @property
    def key_file(self) -> Path:
        """Key-encryption keys of the local provider. A backup of the database without it is useless."""
        return self.state / "kek.json"

    @property
    def operator_socket(self) -> Path:
        """CredentialService. In a directory of its own: who may use the other sockets cannot enter it."""
        return self.run / "operators" / "operator.sock"

    @property
    def hub_socket(self) -> Path:
        """LeaseService."""
        return self.run / "hub.sock"

    @property
    def agents_socket(self) -> Path:
        """RedemptionService."""
        return self.run / "agents.sock"


@dataclass(frozen=True)
class AgentPaths:
    """Files of an agent."""

    state: Path
    """Kept: keys, the hub's address and host key."""
    run: Path
    """Sockets."""

    @property
    def lease_keys_file(self) -> Path:
        """Private keys that redeem leases (`sendense_common.keys`)."""
        return self.state / "lease_keys.pem"

    @property
    def audit_log_dir(self) -> Path:
        """What the agent did (`audit_log`)."""
        return self.state / "audit-log"

    @property
    def grpc_socket(self) -> Path:
        """AgentService, locally; the tunnel publishes it at the hub."""
        return self.run / "grpc.sock"

    @property
    def credentials_socket(self) -> Path:
        """Local end of the tunnel's "credentials"."""
        return self.run / "credentials.sock"

    @property
    def telemetry_socket(self) -> Path:
        """Local end of the tunnel's "telemetry"."""
        return self.run / "telemetry.sock"

    @property
    def exports_dir(self) -> Path:
        """Local ends of the tunnel's "nbd/<export>": `<export>.sock`, for the mover and for `nbdinfo`."""
        return self.run / "x"


@dataclass(frozen=True)
class Installation:
    """Everything below one `--state DIR`, as `sendense up` lays it out."""

    state: Path

    @property
    def run(self) -> Path:
        """Directory of all sockets."""
        return runtime_dir(self.state)

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.state / "logs"

    @property
    def listen_file(self) -> Path:
        """`HOST:PORT` that `sendense up` has its hub listen on when it is not told otherwise."""
        return self.state / "listen"

    @property
    def hub(self) -> HubPaths:
        """The hub."""
        return HubPaths(self.state / "hub", self.run / "hub")

    @property
    def credentials(self) -> CredentialsPaths:
        """The credentials service."""
        return CredentialsPaths(self.state / "credentials", self.run / "cred")

    def agent(self, site: str) -> AgentPaths:
        """The agent of one site; only `local` lives below the centre's state directory."""
        return AgentPaths(self.state / "agents" / site, self.run / f"g-{site}")
