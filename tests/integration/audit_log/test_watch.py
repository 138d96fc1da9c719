# SPDX-License-Identifier: Apache-2.0
"""The hub looks at the logs of others: what one agent answers keeps no other one from being seen."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from sendense.common.v1 import audit_log_service_pb2 as pb
from sendense_common import audit_log, rpc
from sendense_common.rpc.audit_log_service import AuditLogServicer, served
from sendense_hub.catalog import open_catalog, sites
from sendense_hub.clients.sites import Sites
from sendense_hub.jobs.audit_watch import AuditWatch

pytestmark = pytest.mark.integration

SAID = [
    pb.GetHeadResponse(head=pb.AuditHead(sequence=5, record_hash=bytes(1 << 20))),
    pb.GetHeadResponse(head=pb.AuditHead(sequence=-5, record_hash=bytes(32))),
    pb.GetHeadResponse(head=pb.AuditHead(sequence=1, record_hash=bytes(32)), failure="x" * 100_000),
]


class Hostile(AuditLogServicer):
    """Says something else than its log."""

    said: pb.GetHeadResponse

    async def GetHead(self, request: pb.GetHeadRequest, context: Any) -> pb.GetHeadResponse:
        return self.said


async def test_a_hostile_agent_keeps_no_other_site_from_being_seen(short_tmp: Path) -> None:
    async with (
        audit_log.opened(short_tmp / "hub-log", "hub") as own,
        audit_log.opened(short_tmp / "paris-log", "agent:paris") as paris,
        open_catalog(f"sqlite:///{short_tmp / 'catalog.sqlite'}") as catalog,
    ):
        hostile = Hostile(own)
        await catalog.run(lambda connection: sites.register(connection, "evil", "key 1", "1"))
        await catalog.run(lambda connection: sites.register(connection, "paris", "key 2", "2"))
        watch = AuditWatch(own, catalog, Sites(short_tmp, None), short_tmp / "none.sock")  # type: ignore[arg-type]
        async with (
            rpc.serve(short_tmp / "evil.sock", [served(hostile)]),
            rpc.serve(short_tmp / "paris.sock", [served(AuditLogServicer(paris))]),
        ):
            for hostile.said in SAID:
                await watch.look()
                seen = {head.log: head.sequence for head in await watch.witness.heads()}
                assert seen.get("agent:paris") == paris.head.sequence
                words = (await watch.problems())["agent:evil"]
                assert 0 < len(words) <= 256
                assert ("agent:evil" in seen) == (hostile.said.failure != "")


class Deaf(AuditLogServicer):
    """Never answers."""

    asked = 0

    async def GetHead(self, request: pb.GetHeadRequest, context: Any) -> pb.GetHeadResponse:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError


async def test_agents_that_never_answer_keep_no_other_site_waiting(short_tmp: Path) -> None:
    async with (
        audit_log.opened(short_tmp / "hub-log", "hub") as own,
        audit_log.opened(short_tmp / "paris-log", "agent:paris") as paris,
        open_catalog(f"sqlite:///{short_tmp / 'catalog.sqlite'}") as catalog,
        contextlib.AsyncExitStack() as stack,
    ):
        deaf = Deaf(own)
        names = ["a", "b", "c", "d"]
        for number, name in enumerate([*names, "paris"]):
            key = (name, f"key {number}", str(number))
            await catalog.run(lambda connection, key=key: sites.register(connection, *key))  # type: ignore[misc]
            servicer = AuditLogServicer(paris) if name == "paris" else deaf
            await stack.enter_async_context(
                rpc.serve(short_tmp / f"{name}.sock", [served(servicer)], stop_grace_s=0)
            )
        watch = AuditWatch(own, catalog, Sites(short_tmp, None), short_tmp / "none.sock")  # type: ignore[arg-type]
        looking = asyncio.create_task(watch.look())
        try:
            async with asyncio.timeout(60):
                while "agent:paris" not in {head.log for head in await watch.witness.heads()}:
                    assert not looking.done()
                    await asyncio.sleep(0.05)
            assert not looking.done(), "it has not waited for the others"
            async with asyncio.timeout(60):
                await looking
            assert deaf.asked == len(names)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
