# SPDX-License-Identifier: Apache-2.0
"""Running qemu-img and nbdinfo: their words are kept, and a cancelled caller leaves none of them behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.errors import SendenseError

_GRACE_S = 3.0


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    code: int
    output: bytes
    errors: str

    @property
    def no_space(self) -> bool:
        """Whether it failed for want of space."""
        return self.code != 0 and "No space left on device" in self.errors


async def run(*command: str) -> Outcome:
    """Runs a program to its end.

    Raises:
        SendenseError: TOOL_MISSING when it is not installed.
    """
    child = await start(command)
    try:
        output, errors = await child.communicate()
    finally:
        await process.stop(child, grace_s=_GRACE_S)
    return Outcome(child.returncode or 0, output, errors.decode(errors="replace").strip())


async def start(command: Sequence[str]) -> asyncio.subprocess.Process:
    """Starts a program that ends with us; its output and errors are pipes.

    It is killed then: qemu-nbd forgets a SIGTERM that comes while it starts, and a layer that it wrote when
    we ended is discarded anyway.
    """
    try:
        return await asyncio.create_subprocess_exec(
            *process.dying_with_parent(command, parent_signal="KILL"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise SendenseError(
            Reason.REASON_TOOL_MISSING,
            f"{command[0]} cannot be started: {error.strerror}",
            remedy="`sendense doctor` says what is missing and which package has it.",
            tool=command[0],
        ) from error
