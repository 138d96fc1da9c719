# SPDX-License-Identifier: Apache-2.0
"""What a worker says: whole messages, in order, whoever says them and whatever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import sys

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.datapath import framing
from sendense_agent.worker.channel import unpack
from sendense_common import process

pytestmark = pytest.mark.integration

_TALKER = """
import asyncio, sys
from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.worker.channel import Channel

def event(number):
    return pb.RunBackupResponse(seq=number, plan=pb.BackupPlan(nvram=bytes([number]) * 1_000_000))

async def main():
    channel = await Channel.of_worker()
    await channel.receive()
    tasks = [asyncio.create_task(channel.send(event(number))) for number in range(1, 21)]
    await asyncio.sleep(0.05)  # the pipe is full: the first is in the middle of its message
    for task in tasks[:10]:
        task.cancel()
    await asyncio.sleep(0)
    print("now read", file=sys.stderr, flush=True)
    await channel.send(event(21))
    await asyncio.gather(*tasks, return_exceptions=True)

asyncio.run(main())
"""


async def test_messages_of_several_tasks_do_not_mix_also_when_some_are_cancelled():
    child = await asyncio.create_subprocess_exec(
        *process.dying_with_parent([sys.executable, "-c", _TALKER]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(framing.frame(AnyMessage()))
        assert child.stderr is not None
        heard = []
        async with asyncio.timeout(60):
            assert await child.stderr.readline() == b"now read\n"
            while (wrapped := await framing.read(child.stdout, AnyMessage)) is not None:
                event = unpack(wrapped, pb.RunBackupResponse)
                assert event is not None
                assert event.plan.nvram == bytes([event.seq]) * 1_000_000
                heard.append(event.seq)
            assert await child.wait() == 0
    finally:
        await process.stop(child, grace_s=1)
    assert heard[0] == 1  # it was in the middle: it was finished
    assert heard[1:] == list(range(11, 22))  # those that were cancelled before their turn were not said
