# SPDX-License-Identifier: Apache-2.0
"""Readiness is what the health service says, asked as often as it takes."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.rpc import roles

pytestmark = pytest.mark.integration


async def test_ff06_a_service_that_is_slow_to_start_is_waited_for(short_tmp: Path) -> None:
    """Not even a socket that nobody answers on is a failure before the time is up."""
    path = short_tmp / "s.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    waiting = asyncio.create_task(rpc.wait_healthy(path, timeout_s=60, what="the slow service"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    async with rpc.serve(path, []):
        await waiting


async def test_ff06_a_service_that_never_starts_is_named(short_tmp: Path) -> None:
    with pytest.raises(SendenseError, match="the dead service") as failed:
        await rpc.wait_healthy(short_tmp / "none.sock", timeout_s=0.2, what="the dead service")
    assert failed.value.reason == Reason.REASON_SERVICE_UNAVAILABLE


async def test_who_watches_the_health_of_a_service_hears_of_it_and_of_its_end(short_tmp: Path) -> None:
    path = short_tmp / "s.sock"
    async with rpc.connect(path) as channel:
        async with rpc.serve(path, []):
            watching = health_pb2_grpc.HealthStub(channel).Watch(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=60
            )
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_methods_that_callers_invent_are_unknown_and_forgotten(short_tmp: Path) -> None:
    path = short_tmp / "s.sock"
    async with rpc.serve(path, []), rpc.connect(path) as channel:
        kept = roles.needed.cache_info().currsize
        for number in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(f"/no.such.Service/Method{number}")(b"")  # type: ignore[arg-type]
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert roles.needed.cache_info().currsize == kept


async def test_a_token_never_goes_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        remote = rpc.Remote("127.0.0.1", server.getsockname()[1], tls=False, token="secret")
        async with rpc.connect_remote(remote) as channel:
            call: Any = channel.unary_unary("/a.B/C")(b"", timeout=60)  # type: ignore[arg-type]
            server.settimeout(30)
            connection, _ = await asyncio.to_thread(server.accept)
            connection.close()
            call.cancel()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
