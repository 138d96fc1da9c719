# SPDX-License-Identifier: Apache-2.0
"""Nothing that was started below us is left when we say so."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

_RUN = """
import asyncio, os, sys
from sendense_cli import descendants

async def main():
    async with descendants.none_left(grace_s=float(sys.argv[1])):
        # Killed at once: what it has started is an orphan in a session of its own.
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", "setsid sleep " + sys.argv[2] + " >/dev/null 2>&1 & echo $!; kill -KILL $$",
            stdout=asyncio.subprocess.PIPE,
        )
        pid = int(await shell.stdout.readline())
        await shell.wait()
    print(pid, flush=True)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        print("gone")

asyncio.run(main())
"""


@pytest.mark.parametrize(("grace", "sleep"), [("60", "0.5"), ("0", "1000")], ids=["waited for", "killed"])
def test_orphans_of_a_killed_child_are_gone_after_the_block(grace: str, sleep: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, grace, sleep], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split()[1:] == ["gone"], done.stdout + done.stderr
