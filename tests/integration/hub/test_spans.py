# SPDX-License-Identifier: Apache-2.0
"""Spans come from agents, which may say anything: they fill no disk, and push out no job's trace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.integration.hub.kit import new_job

from sendense_common import rpc
from sendense_common.telemetry._setup import SocketSpanExporter
from sendense_hub.catalog import Catalog, jobs, open_catalog, spans
from sendense_hub.catalog.jobs import Origin
from sendense_hub.catalog.schema import spans as table
from sendense_hub.catalog.spans import StoredSpan
from sendense_hub.rpc.span_intake import SpanIntake

pytestmark = pytest.mark.integration

FAR_AWAY_NS = 2**62
MOST = 100


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with open_catalog(f"sqlite:///{tmp_path / 'c.sqlite'}") as opened:
        yield opened


def spans_of(trace: int, count: int = 1, start_ns: int = 0) -> list[StoredSpan]:
    return [
        StoredSpan(f"{trace:032x}", f"{each:016x}", "", "n", "s", start_ns, 1, "", {})
        for each in range(1, count + 1)
    ]


async def keep(catalog: Catalog, *batches: list[StoredSpan], site: str = "") -> None:
    for batch in batches:
        await catalog.run(lambda connection, batch=batch: spans.store(connection, batch, site, most=MOST))  # type: ignore[misc]


async def kept(catalog: Catalog) -> dict[int, int]:
    """How many spans of which trace."""
    query = sa.select(table.c.trace_id, sa.func.count()).group_by(table.c.trace_id)
    rows = await catalog.run(lambda connection: connection.execute(query).all())
    return {int(trace, 16): count for trace, count in rows}


async def start_job(catalog: Catalog, trace: int) -> None:
    job = new_job()
    job.trace_id, job.vm_instance_uuid = f"{trace:032x}", str(trace)
    await catalog.run(lambda connection: jobs.insert(connection, job, Origin(job.job_id, "00-aa-bb-01")))
    assert (await catalog.run(lambda connection: jobs.get(connection, job.job_id))).trace_id == job.trace_id


class Context:
    """Of a call that comes through a gateway."""

    def peer(self) -> str:
        return "unix-abstract:sendense/site/paris:0f"


async def export(catalog: Catalog, *sent: trace_pb2.Span) -> list[sa.Row[tuple[object, ...]]]:
    """What is kept of it."""
    request = pb.ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(sent)
    await SpanIntake(catalog).Export(request, Context())  # type: ignore[arg-type]
    return list(await catalog.run(lambda connection: connection.execute(sa.select(table)).all()))


async def test_calls_with_many_traces_each_fill_nothing(catalog: Catalog):
    for call in range(5):
        batch = [span for each in range(80) for span in spans_of(1000 * call + each)]
        await keep(catalog, batch)
        assert 80 <= sum((await kept(catalog)).values()) <= MOST


async def test_what_came_first_goes_first_whatever_time_it_tells(catalog: Catalog):
    await keep(catalog, spans_of(1, 40, FAR_AWAY_NS), spans_of(2, 40, 5), spans_of(1, 45, FAR_AWAY_NS))
    await keep(catalog, spans_of(3, 40, 7))
    assert await kept(catalog) == {2: 40, 3: 40}


async def test_what_belongs_to_no_job_pushes_out_no_trace_of_one(catalog: Catalog):
    for trace in (1, 2, 3):
        await start_job(catalog, trace)
        await keep(catalog, spans_of(trace, 20))
    for call in range(10, 20):
        await keep(
            catalog, [span for each in range(60) for span in spans_of(1000 * call + each, 1, FAR_AWAY_NS)]
        )
    found = await kept(catalog)
    assert {trace: count for trace, count in found.items() if trace < 1000} == {1: 20, 2: 20, 3: 20}
    assert sum(found.values()) <= MOST
    for trace in (4, 5):
        await start_job(catalog, trace)
        await keep(catalog, spans_of(trace, 35))
    assert await kept(catalog) == {3: 20, 4: 35, 5: 35}, "of jobs, the first that came"


@pytest.mark.parametrize("of_jobs", [False, True])
async def test_a_site_that_sends_many_traces_pushes_out_its_own(catalog: Catalog, of_jobs: bool):
    """Also where they are of jobs: one has as many jobs as it likes, and the other few."""
    for trace in range(1, 40):
        if of_jobs:
            await start_job(catalog, trace)
    await keep(catalog, spans_of(1, 15), site="rome")
    await keep(catalog, spans_of(2, 15))  # of the installation itself
    for trace in range(3, 40):
        await keep(catalog, spans_of(trace, 5, FAR_AWAY_NS), site="paris")
    found = await kept(catalog)
    assert (found[1], found[2]) == (15, 15)
    assert sum(found.values()) <= MOST
    theirs = [trace for trace in found if trace > 2]
    assert len(theirs) > 5
    assert theirs == list(range(min(theirs), 40)), "the first that came went first"


async def test_spans_from_before_traces_were_numbered_go_first(catalog: Catalog):
    await keep(catalog, spans_of(1, 40), spans_of(2, 40))
    old = table.update().where(table.c.trace_id == f"{2:032x}").values(arrival=None)
    await catalog.run(lambda connection: connection.execute(old))
    await keep(catalog, spans_of(3, 40))
    assert await kept(catalog) == {1: 40, 3: 40}


@pytest.mark.parametrize(
    ("trace", "span", "parent", "taken"),
    [
        (16, 8, 0, True), (16, 8, 8, True), (16, 8, 9, False), (16, 8, 1 << 19, False), (16, 8, 7, False),
        (15, 8, 0, False), (16, 7, 0, False), (0, 0, 0, False),
    ],
)  # fmt: skip
async def test_identifiers_have_their_lengths(
    catalog: Catalog, trace: int, span: int, parent: int, taken: bool
):
    sent = trace_pb2.Span(trace_id=b"t" * trace, span_id=b"s" * span, parent_span_id=b"p" * parent)
    assert len(await export(catalog, sent)) == taken


async def test_texts_have_an_end(catalog: Catalog):
    sent = trace_pb2.Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="\U0001f600" * 100_000)
    for number in range(1000):
        sent.attributes.add(key=f"{number}" + "ключ" * 100).value.string_value = "значение" * 1000
    sent.status.code = trace_pb2.Status.STATUS_CODE_ERROR
    sent.status.message = "ужас" * 10_000
    (row,) = await export(catalog, sent)
    texts = [text for pair in row.attributes.items() for text in pair]
    assert texts
    assert sum(len(text.encode()) for text in texts) <= 2_000
    assert 490 <= len(row.name.encode()) <= 500
    assert 490 <= len(row.error.encode()) <= 500


async def test_so_many_spans_are_taken_with_one_call(catalog: Catalog):
    sent = [trace_pb2.Span(trace_id=bytes(15) + b"1", span_id=each.to_bytes(8)) for each in range(1, 2001)]
    assert len(await export(catalog, *sent)) == 1000


def failed_spans(count: int, traceback_bytes: int) -> list[ReadableSpan]:
    """As OpenTelemetry makes them."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    for each in range(count):
        with tracer.start_as_current_span(f"span {each}") as span:
            span.add_event("exception", {"exception.stacktrace": "x" * traceback_bytes})
    provider.shutdown()
    return list(memory.get_finished_spans())


async def test_what_our_own_processes_send_fits(catalog: Catalog, short_tmp: Path):
    service = rpc.Service("TraceService", add_TraceServiceServicer_to_server, SpanIntake(catalog))
    exporter = SocketSpanExporter(short_tmp / "t.sock")
    async with rpc.serve(short_tmp / "t.sock", [service], stop_grace_s=0, bounds=rpc.AGENTS):
        with contextlib.closing(exporter._channel):
            for count, traceback_bytes in ((512, 10_000), (1_500, 10)):
                made = failed_spans(count, traceback_bytes)
                assert await asyncio.to_thread(exporter.export, made) == SpanExportResult.SUCCESS
    assert sum((await kept(catalog)).values()) == 2_012
