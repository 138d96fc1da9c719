# SPDX-License-Identifier: Apache-2.0
"""What every service process does around its work: logging, signals, tracing, one exit path."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_common.process import die_with_parent

log = logging.getLogger(__name__)

PARENT_ENV = "SENDENSE_PARENT_PID"
"""Set by whoever starts one of our services as a child: the child ends with that process."""

DIED_ENV = "SENDENSE_DIED_BEFORE"
"""Set by whoever starts a child in place of one that died: how that one ended. See `died_before`."""

TAKEN_OVER_FD_ENV = "SENDENSE_TAKEN_OVER_FD"
"""Set by whoever starts a child in place of others: a pipe. See `say_taken_over`."""

_LOOK_AGAIN_S = 0.05
_FORMAT = "%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s"


def configure_logging(level: str | None = None) -> None:
    """Logs to standard error; level from `level` or SENDENSE_LOG (default INFO)."""
    logging.basicConfig(
        level=(level or os.environ.get("SENDENSE_LOG") or "INFO").upper(),
        format=_FORMAT,
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("asyncssh").setLevel(logging.WARNING)


def run_service(
    name: str,
    main: Callable[[asyncio.Event], Awaitable[None]],
    *,
    spans_socket: Path | None = None,
) -> int:
    """Runs a service until SIGTERM or SIGINT, and returns the process's exit code.

    Args:
        name: for traces and the log, as "sendense-hub".
        main: does the work until the event it is given is set, then cleans up and returns.
        spans_socket: where spans go; see `telemetry.configure`.

    A `SendenseError` from `main` is printed with its remedy and gives exit code 1.
    """
    configure_logging()
    os.umask(0o077)  # databases, layers, keys: nothing of ours is anybody else's to read
    parent = os.environ.pop(PARENT_ENV, "")
    if parent:
        die_with_parent(int(parent))
    telemetry.configure(name, spans_socket=spans_socket)
    try:
        asyncio.run(_until_signalled(name, main))
    except SendenseError as error:
        log.error("%s stops: %s. %s", name, error, error.remedy)
        return 1
    finally:
        telemetry.shutdown()
    return 0


def died_before() -> str:
    """How the process ended in whose place this one was started, as "killed by SIGKILL"; empty for the first.

    Those that ended before they said that they had taken over do not count: see `say_taken_over`.
    To be called once: what this process starts has not taken anybody's place.
    """
    return os.environ.pop(DIED_ENV, "")


def say_taken_over() -> None:
    """Tells who started this process that what others left is settled: what is left from now on is its own.

    To be called once: the pipe is closed.
    """
    descriptor = os.environ.pop(TAKEN_OVER_FD_ENV, "")
    if descriptor:
        with contextlib.suppress(BrokenPipeError), io.FileIO(int(descriptor), "w") as pipe:
            pipe.write(b"1")


@contextlib.contextmanager
def only_one(lock_file: Path, what: str) -> Iterator[None]:
    """Keeps other processes out of a state directory during the block; the lock ends with the process.

    Raises:
        SendenseError: SERVICE_UNAVAILABLE when another process (`what`) holds it.
    """
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SendenseError(
                Reason.REASON_SERVICE_UNAVAILABLE,
                f"another {what} uses the state directory {lock_file.parent}",
                remedy="Stop it, or give this one a directory of its own with --state.",
            ) from error
        yield


@contextlib.asynccontextmanager
async def only_one_after_another(lock_file: Path, what: str, *, within_s: float) -> AsyncIterator[None]:
    """`only_one` that waits for a while: the process before may not have ended yet.

    Raises:
        SendenseError: SERVICE_UNAVAILABLE when another process (`what`) still holds it then.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(only_one(lock_file, what))
                break
            except SendenseError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(_LOOK_AGAIN_S)
        yield


async def _until_signalled(name: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _ask_to_stop, name, stopping, number)
    await main(stopping)


def _ask_to_stop(name: str, stopping: asyncio.Event, number: signal.Signals) -> None:
    log.info("%s got %s and stops", name, number.name)
    stopping.set()
