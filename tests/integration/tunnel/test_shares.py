# SPDX-License-Identifier: Apache-2.0
"""What all sites use, `credentials` and `telemetry`: each has a share of its own, by who has logged in."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    TraceServiceStub,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.integration.raw_http2 import raw_client
from tests.integration.tunnel.kit import Hub, echo, running_hub, target, until

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import redemption_service_pb2 as redemption_pb
from sendense.credentials.v1.redemption_service_pb2_grpc import (
    RedemptionServiceServicer,
    RedemptionServiceStub,
    add_RedemptionServiceServicer_to_server,
)
from sendense_common import rpc, site_name
from sendense_common.errors import SendenseError
from sendense_common.tunnel import dial
from sendense_hub.gateway.limits import Limits

pytestmark = pytest.mark.integration

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
WITHIN_S = 20.0
BOUNDS = replace(
    rpc.AGENTS,
    calls=16,
    calls_per_site=4,
    request_within_s=600.0,
    call_within_s=600.0,
    connection_for_s=600.0,
)


class Intake(TraceServiceServicer):
    """Takes spans."""

    async def Export(self, request: Any, context: Any) -> pb.ExportTraceServiceResponse:
        return pb.ExportTraceServiceResponse()


@contextlib.asynccontextmanager
async def telemetry(hub: Hub, bounds: rpc.Bounds = BOUNDS) -> AsyncIterator[None]:
    socket = hub.paths.run / "telemetry.sock"
    service = rpc.Service("TraceService", add_TraceServiceServicer_to_server, Intake())
    async with rpc.serve(socket, [service], stop_grace_s=0, bounds=bounds):
        hub.authorization.targets["telemetry"] = socket
        yield


@contextlib.asynccontextmanager
async def opened(hub: Hub, agent_id: str, socket: Path) -> AsyncIterator[Path]:
    """`telemetry` as a process of this site sees it, over a connection of its own."""
    async with dial(hub.enrol(agent_id)) as tunnel, tunnel.forward("telemetry", socket):
        yield socket


async def export(socket: Path) -> None:
    async with rpc.connect(socket) as channel:
        await TraceServiceStub(channel).Export(pb.ExportTraceServiceRequest(), timeout=WITHIN_S)  # type: ignore[no-untyped-call]


async def test_a_site_that_floods_takes_no_other_sites_share(hub: Hub, short_tmp: Path):
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(telemetry(hub))
        for connection in range(2):
            theirs = await stack.enter_async_context(opened(hub, "site-a", short_tmp / f"a{connection}"))
            for _ in range(6):  # 48 calls that have no end, where all may make 16
                flooding = await stack.enter_async_context(raw_client(theirs))
                flooding.begin()
                for _ in range(4):
                    flooding.call(EXPORT)
                await flooding.sent()
        ours = await stack.enter_async_context(opened(hub, "site-b", short_tmp / "b"))
        for _ in range(30):
            await export(ours)


class Redemption(RedemptionServiceServicer):
    """Notes who calls."""

    def __init__(self) -> None:
        self.sites: list[str] = []

    async def RedeemLease(self, request: Any, context: Any) -> redemption_pb.RedeemLeaseResponse:
        self.sites.append(site_name.of_peer(context.peer()))
        return redemption_pb.RedeemLeaseResponse()


async def test_a_call_through_a_gateway_has_a_span_like_every_other(
    hub: Hub, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
):
    """OpenTelemetry looks at the peer's name: it takes what is no "unix:" for an address with a port."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    servicer, socket = Redemption(), hub.paths.run / "credentials.sock"
    name = "sendense.credentials.v1.RedemptionService"
    service = rpc.Service(name, add_RedemptionServiceServicer_to_server, servicer)
    async with rpc.serve(socket, [service], stop_grace_s=0, bounds=rpc.AGENTS):
        hub.authorization.targets["credentials"] = socket
        async with dial(hub.enrol("site-a")) as tunnel, tunnel.forward("credentials", short_tmp / "l"):
            async with rpc.connect(short_tmp / "l") as channel:
                request = redemption_pb.RedeemLeaseRequest()
                await RedemptionServiceStub(channel).RedeemLease(request, timeout=WITHIN_S)
    assert servicer.sites == ["site-a"]
    kinds = [span.kind for span in exporter.get_finished_spans()]
    assert kinds.count(trace.SpanKind.SERVER) == 1
    provider.shutdown()


async def test_a_service_is_told_who_has_logged_in(hub: Hub, short_tmp: Path):
    heard: list[str] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(site_name.of_address(writer.get_extra_info("peername")))
        await reader.read()

    async with target(hub, "credentials", note), target(hub, "nbd/e", note):
        asked = itertools.product(("site-a", "site-b"), ("credentials", "nbd/e"))
        for number, (agent_id, name) in enumerate(asked, start=1):
            async with dial(hub.enrol(agent_id)) as tunnel, tunnel.forward(name, short_tmp / "l"):
                _, writer = await asyncio.open_unix_connection(str(short_tmp / "l"))
                await until(lambda number=number: len(heard) == number, "it is connected", WITHIN_S)  # type: ignore[misc]
                writer.close()
    assert heard == ["site-a", "", "site-b", ""], "a program that serves an export does not need it"


async def test_an_agent_has_so_many_channels_to_services_over_all_of_its_connections(short_tmp: Path):
    limits = Limits(recheck_s=0.2, service_channels_per_agent=3)
    async with running_hub(short_tmp, limits) as hub, contextlib.AsyncExitStack() as stack:
        for name in ("credentials", "telemetry", "nbd/e"):
            await stack.enter_async_context(target(hub, name, echo))

        async def channel(agent_id: str, name: str) -> bool:
            """One more, over a connection of its own, that stays; whether it is let in."""
            tunnel = await stack.enter_async_context(dial(hub.enrol(agent_id)))
            socket = short_tmp / f"l{len(sockets)}"
            sockets.append(socket)
            forward = await stack.enter_async_context(tunnel.forward(name, socket))
            reader, writer = await asyncio.open_unix_connection(str(socket))
            stack.callback(writer.close)
            writer.write(b"x")
            answered = await asyncio.wait_for(reader.read(1), WITHIN_S) == b"x"
            if not answered:
                assert isinstance(forward.refusal, SendenseError)
                assert forward.refusal.reason == Reason.REASON_SERVICE_UNAVAILABLE
                assert "too many channels" in forward.refusal.message
            return answered

        sockets: list[Path] = []
        asked = ["credentials", "telemetry", "telemetry", "telemetry", "credentials"]
        assert [await channel("site-a", name) for name in asked] == [True, True, True, False, False]
        assert await channel("site-a", "nbd/e"), "exports are the site's own"
        assert await channel("site-b", "telemetry")
