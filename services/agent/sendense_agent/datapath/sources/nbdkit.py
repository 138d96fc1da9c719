# SPDX-License-Identifier: Apache-2.0
"""Running nbdkit for one source: start, handshake, its words, and an end that leaves nothing."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources.contract import Source
from sendense_common import process
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir
from sendense_common.undisturbed import undisturbed

_READY_WITHIN_S = 30.0
_ASK_EVERY_S = 0.02
_STDERR_LINES = 40
_ALL_WORDS_WITHIN_S = 1.0
# A socket's file is there a moment before anybody listens.
_NOT_YET = "Connection refused"
_ERROR = re.compile(r"nbdkit: (?:\S+ )?error: (?P<words>.+)")

Explain = Callable[[str, str], SendenseError]
"""From (label, nbdkit's words) to what they mean."""


@contextlib.contextmanager
def claimed(run_dir: Path, label: str) -> Iterator[Path]:
    """The socket's path for one label, which nobody else has until the block ends.

    Raises:
        SendenseError: INTERNAL: a source of that label is open.
    """
    private_dir(run_dir)
    lock = run_dir / f"{label}.lock"
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SendenseError(
                Reason.REASON_INTERNAL, f"{label}: a disk is being read under that name already"
            ) from error
        socket = run_dir / f"{label}.sock"
        try:
            socket.unlink(missing_ok=True)
            yield socket
        finally:
            socket.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def handed_over(secret: str) -> int:
    """A descriptor from which a child can read a secret once; to be closed after the start."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as pipe:
        pipe.write(secret)
    return reading


@contextlib.asynccontextmanager
async def serving(
    arguments: Sequence[str],
    *,
    socket: Path,
    label: str,
    capacity_bytes: int,
    explain: Explain,
    descriptors: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    stop_grace_s: float = 3.0,
    on_line: Callable[[str], None] = lambda _: None,
    fatal: re.Pattern[str] | None = None,
) -> AsyncIterator[Source]:
    """A running nbdkit whose export has that size.

    Args:
        arguments: filters, plugin and parameters.
        socket: to listen on.
        label: for messages.
        capacity_bytes: that the export must have.
        explain: makes errors of its words.
        descriptors: that it inherits.
        environment: more of it.
        stop_grace_s: that it gets to say goodbye to its server.
        on_line: sees each line of its standard error.
        fatal: a line of it that ends nbdkit at once, whatever it would try again.
    """
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--readonly", f"--unix={socket}", *arguments]
    child = await start(command, descriptors, environment, stdout=asyncio.subprocess.DEVNULL)
    server = _Server(child, socket, on_line, fatal)
    try:
        found = await server.capacity()
        if found is None:
            raise explain(label, server.words())
        if found != capacity_bytes:
            raise SendenseError(
                Reason.REASON_DISK_MISMATCH,
                f"{label}: the source has {found} bytes, the disk has {capacity_bytes}",
                remedy="The disk may be of a kind that needs VMware's library (VDDK).",
            )
        try:
            yield Source(socket, "", capacity_bytes)
        except SendenseError as error:
            if error.reason == Reason.REASON_SOURCE_READ_FAILED and (last := await server.last_error()):
                cause = explain(label, last)
                if cause.reason == error.reason:
                    cause = SendenseError(error.reason, f"{error.message} ({last})", remedy=error.remedy)
                cause.metadata |= error.metadata
                raise cause from error
            raise
    finally:
        await undisturbed(server.stop(stop_grace_s))


async def start(
    command: Sequence[str],
    descriptors: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    stdout: int = asyncio.subprocess.PIPE,
) -> asyncio.subprocess.Process:
    """A child that dies with us; TOOL_MISSING."""
    missing = [each for each in ("setpriv", command[0]) if shutil.which(each) is None]
    if missing:  # setpriv would say so in words of its own
        raise SendenseError(
            Reason.REASON_TOOL_MISSING,
            f"{missing[0]} is not installed",
            remedy="Install the packages nbdkit, libnbd-bin and util-linux.",
            tool=missing[0],
        )
    return await asyncio.create_subprocess_exec(
        *process.dying_with_parent(command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=descriptors,
        env={**os.environ, **(environment or {})},
    )


class _Server:
    """A running nbdkit and its words."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        socket: Path,
        on_line: Callable[[str], None],
        fatal: re.Pattern[str] | None,
    ) -> None:
        self._child = child
        self._socket = socket
        self._on_line = on_line
        self._fatal = fatal
        self._fatal_line = ""
        self._lines: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._answer = "no answer"
        self._reading = asyncio.create_task(self._read_stderr())

    async def capacity(self) -> int | None:
        """The size that a handshake shows, in bytes; None: see `words`."""
        deadline = asyncio.get_running_loop().time() + _READY_WITHIN_S
        while asyncio.get_running_loop().time() < deadline and self._child.returncode is None:
            if self._socket.exists():
                asking = await start(["nbdinfo", "--size", f"nbd+unix:///?socket={self._socket}"])
                try:
                    output, errors = await asking.communicate()
                finally:
                    await undisturbed(_ended(asking))
                if asking.returncode == 0:
                    return int(output)
                self._answer = errors.decode(errors="replace").strip()
                if not self._answer.endswith(_NOT_YET):
                    break  # it listens, so what it says is final
            await asyncio.sleep(_ASK_EVERY_S)
        if self._child.returncode is not None:
            await asyncio.wait({self._reading}, timeout=_ALL_WORDS_WITHIN_S)
        return None

    def words(self) -> str:
        """What it said so far, or what there is instead."""
        return "\n".join(self._lines) or self._answer

    async def last_error(self) -> str:
        """Its newest one; empty: it had none."""
        await asyncio.sleep(_ASK_EVERY_S)  # it may have been said just now, and nobody has listened yet
        if self._fatal_line:
            return self._fatal_line  # what came later is about its end
        found = [match["words"] for line in self._lines if (match := _ERROR.search(line))]
        return found[-1] if found else ""

    async def stop(self, grace_s: float) -> None:
        """Ends it."""
        await process.stop(self._child, grace_s=grace_s)
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read_stderr(self) -> None:
        assert self._child.stderr is not None
        async for line in self._child.stderr:
            self._lines.append(line.decode(errors="replace").rstrip())
            self._on_line(self._lines[-1])
            if self._fatal is not None and self._fatal.search(self._lines[-1]):
                self._fatal_line = self._fatal_line or self._lines[-1]
                with contextlib.suppress(ProcessLookupError):
                    self._child.terminate()


async def _ended(child: asyncio.subprocess.Process) -> None:
    await process.stop(child, grace_s=0.5)
