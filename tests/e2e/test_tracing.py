# SPDX-License-Identifier: Apache-2.0
"""One trace per backup, through all services."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tests.e2e.kit import MIB, Lab, World, data, until, world

pytestmark = pytest.mark.e2e

SERVICES = {"sendense-cli", "sendense-hub", "sendense-agent", "sendense-credentials"}


def test_a_backup_is_one_tree_from_the_command_to_the_mover(shared_world: World, shared_lab: Lab) -> None:
    lab, name = shared_lab, "traced"
    (key,) = lab.add_vm(name, [16 * MIB]).disks
    lab.write(name, key, 0, data(MIB, name))
    job = shared_world.back_up(name)

    def whole() -> list[dict[str, Any]] | None:
        spans = shared_world.ask("job", "trace", job["job_id"])["spans"]
        names = {span["name"] for span in spans}
        wanted = {f"backup of {name}", f"copy Hard disk 1 of VM {name}", f"sendense backup start {name}"}
        return spans if wanted <= names else None

    spans = until(whole, "all spans have arrived")
    assert {span["service"] for span in spans} == SERVICES
    assert {span["trace_id"] for span in spans if "trace_id" in span} <= {job["trace_id"]}
    known = {span["span_id"]: span for span in spans}
    roots = [span["name"] for span in spans if span["parent_span_id"] not in known]
    assert roots == [f"sendense backup start {name}"]

    def ancestors(span: dict[str, Any]) -> list[str]:
        names = []
        while span["parent_span_id"] in known:
            span = known[span["parent_span_id"]]
            names.append(span["name"])
        return names

    (mover,) = (span for span in spans if span["name"].startswith("copy Hard disk 1"))
    assert [each for each in ancestors(mover) if not each.startswith("/")] == [
        "copy", f"agent: backup of {name}", f"backup of {name}", f"sendense backup start {name}",
    ]  # fmt: skip
    opened = [span for span in spans if span["name"] == "open credential"]
    assert {span["service"] for span in opened} == {"sendense-credentials"}
    # The one is of looking for the VM, the other of the backup itself.
    assert any(f"agent: backup of {name}" in ancestors(span) for span in opened)
    of_attempt = [span for span in spans if f"backup of {name}" in [span["name"], *ancestors(span)]]
    assert {span["service"] for span in of_attempt} == SERVICES - {"sendense-cli"}
    assert [span["name"] for span in of_attempt if span["attributes"].get("attempt") != "1"] == []
    drawn = shared_world.run("job", "trace", job["job_id"]).stdout
    assert f"backup of {name}" in drawn
    assert "└─" in drawn


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.services: dict[str, set[bytes]] = {}

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            facts = {each.key: each.value.string_value for each in resource.resource.attributes}
            ids = {span.trace_id for scope in resource.scope_spans for span in scope.spans}
            self.services.setdefault(facts["service.name"], set()).update(ids)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[_Collector, int]]:
    """An OTLP collector on loopback."""
    made, server = _Collector(), grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, port
    server.stop(None).wait()


def test_spans_go_to_a_collector_by_the_standard_variables(
    tmp_path: Path, collector: tuple[_Collector, int]
) -> None:
    received, port = collector
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
    }
    with world(tmp_path, environment=variables) as made:
        lab = made.lab()
        (key,) = lab.add_vm("exported", [4 * MIB]).disks
        lab.write("exported", key, 0, data(MIB, "exported"))
        trace = bytes.fromhex(made.back_up("exported")["trace_id"])
        until(
            lambda: {name for name, traces in received.services.items() if trace in traces} == SERVICES,
            f"spans of {trace.hex()} from all services; there are {list(received.services)}",
        )
