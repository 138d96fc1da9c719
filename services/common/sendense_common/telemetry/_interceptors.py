# SPDX-License-Identifier: Apache-2.0
"""Trace context in the metadata of every call, by OpenTelemetry's own instrumentation.

Long streams get no span: a stream that its client cancels loses the span, and one that lives for hours says
nothing. Their messages carry the context themselves. Health, reflection and span intake would be noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from opentelemetry.instrumentation.grpc import (
    aio_client_interceptors,
    aio_server_interceptor,
    filters,
)

from sendense_common.telemetry._spans_of_calls import WithoutTracebacks

_WITHOUT_SPAN = filters.any_of(
    filters.full_method_name("/sendense.agent.v1.AgentService/RunBackup"),
    filters.full_method_name("/sendense.hub.v1.JobService/WatchJob"),
    filters.service_name("sendense.hub.v1.AuthorizationService"),
    filters.service_name("grpc.health.v1.Health"),
    filters.service_prefix("grpc.reflection"),
    filters.service_prefix("opentelemetry.proto.collector"),
)


def server_interceptors() -> list[grpc.aio.ServerInterceptor]:
    """For every server."""
    provider, with_span = WithoutTracebacks(), filters.negate(_WITHOUT_SPAN)
    return [aio_server_interceptor(tracer_provider=provider, filter_=with_span)]


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """For every channel."""
    interceptors: Sequence[grpc.aio.ClientInterceptor] = aio_client_interceptors(
        filter_=filters.negate(_WITHOUT_SPAN)
    )
    return interceptors
