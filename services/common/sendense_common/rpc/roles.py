# SPDX-License-Identifier: Apache-2.0
"""Which role a call needs: what the contracts say of themselves, with `option (sendense.common.v1.role)`.

Calls of other people's contracts that are served here have theirs in one table below.
"""

from __future__ import annotations

import functools

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from sendense.common.v1 import role_pb2
from sendense.common.v1.role_pb2 import Role

# Whether a service is there, everybody may ask: what watches it needs no token. A stream of that would be a
# place to stay in, and reflection tells what there is to attack.
_OPEN = frozenset({"/grpc.health.v1.Health/Check"})
_FOREIGN: dict[str, Role.ValueType] = {
    "grpc.health.v1.Health": Role.ROLE_VIEWER,
    "grpc.reflection.v1alpha.ServerReflection": Role.ROLE_VIEWER,
    "opentelemetry.proto.collector.trace.v1.TraceService": Role.ROLE_SERVICE,
}
_PREFIX = "ROLE_"


@functools.cache
def needed(method: str) -> Role.ValueType | None:
    """The role that a call of `method` (`/package.Service/Method`) needs; None: anybody may make it.

    A method that says nothing, or that nobody knows, needs ROLE_SERVICE: it is never open by oversight.
    """
    if method in _OPEN:
        return None
    service, _, name = method.removeprefix("/").partition("/")
    if service in _FOREIGN:
        return _FOREIGN[service]
    try:
        described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    except KeyError:
        return Role.ROLE_SERVICE
    return declared(described) or Role.ROLE_SERVICE


def declared(method: MethodDescriptor) -> Role.ValueType:
    """What the contract says; ROLE_UNSPECIFIED when it says nothing."""
    role: Role.ValueType = method.GetOptions().Extensions[role_pb2.role]
    return role


def role_name(role: Role.ValueType) -> str:
    """`viewer` for ROLE_VIEWER."""
    return Role.Name(role).removeprefix(_PREFIX).lower()
