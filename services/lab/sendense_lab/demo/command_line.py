# SPDX-License-Identifier: Apache-2.0
"""The `sendense` command, run as a user would: as a process, answered by its output and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

from sendense_common import process

_READY_WITHIN_S = 120.0
_STOP_GRACE_S = 180.0


class DemoError(Exception):
    """Something did not work; the text says what."""


class CommandLine:
    """Commands for one installation."""

    def __init__(self, state: Path, marks: Mapping[str, str], output: IO[str]) -> None:
        """Commands for one installation.

        Args:
            state: of the installation.
            marks: environment variables by which processes of this demonstration are known.
            output: takes what people are to see.
        """
        self._state = state
        self._output = output
        self._environment = {**os.environ, **marks, "SENDENSE_STATE": str(state)}
        self._environment.pop("SENDENSE_LOG", None)

    async def show(self, *arguments: str) -> None:
        """Runs a command whose output is for the person who watches.

        Raises:
            DemoError: it did not exit with 0.
        """
        child = await asyncio.create_subprocess_exec(
            *_command(arguments), stdout=self._output, env=self._environment
        )
        await _finish(child, arguments)

    async def ask(self, *arguments: str, secret: str | None = None) -> Any:
        """The JSON that a command answers.

        Args:
            arguments: of the command; `--json` is added.
            secret: for its standard input.

        Raises:
            DemoError: it did not exit with 0; with its words.
        """
        child = await asyncio.create_subprocess_exec(
            *_command([*arguments, "--json"]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        output, errors = await child.communicate(secret.encode() if secret is not None else b"")
        if child.returncode:
            raise DemoError(f"sendense {' '.join(arguments)}: {errors.decode(errors='replace').strip()}")
        return json.loads(output)

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[dict[str, Any]]:
        """Runs `sendense up` while the block runs; gives what it said when it was ready."""
        child = await asyncio.create_subprocess_exec(
            *_command(["up", "--json"]),
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,  # Ctrl-C goes to the demonstration, which stops it in order
            limit=2**20,
        )
        try:
            assert child.stdout is not None
            said = b""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READY_WITHIN_S):
                    while line := await child.stdout.readline():
                        said += line
                        if line.startswith(b"}"):
                            break
            try:
                facts: dict[str, Any] = json.loads(said)
            except ValueError:
                raise DemoError(f"`sendense up` did not get ready; look at {self._state / 'logs'}") from None
            yield facts
        finally:
            await process.stop(child, grace_s=_STOP_GRACE_S)


def _command(arguments: list[str] | tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "sendense_cli.main", *arguments]


async def _finish(child: asyncio.subprocess.Process, arguments: tuple[str, ...]) -> None:
    try:
        code = await child.wait()
    finally:
        await process.stop(child, grace_s=5)
    if code:
        raise DemoError(f"sendense {' '.join(arguments)} exited with {code}")
