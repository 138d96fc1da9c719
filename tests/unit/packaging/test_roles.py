# SPDX-License-Identifier: Apache-2.0
"""Each call of the contracts has a role, and docs/operators.md says which."""

from __future__ import annotations

import importlib
import re

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from tests.unit.packaging.containers import ROOT

from sendense.common.v1.role_pb2 import Role
from sendense_common.rpc import roles

pytestmark = pytest.mark.unit

PAGE = ROOT / "docs" / "operators.md"


def services() -> list[ServiceDescriptor]:
    """Of all contracts of ours."""
    found: list[ServiceDescriptor] = []
    for file in sorted((ROOT / "protos").glob("sendense/*/v1/*_service.proto")):
        path = str(file.relative_to(ROOT / "protos"))
        importlib.import_module(path.removesuffix(".proto").replace("/", ".") + "_pb2")
        described = descriptor_pool.Default().FindFileByName(path)
        found += described.services_by_name.values()
    assert len(found) >= 12
    return found


def test_no_call_is_without_a_role():
    without = [
        method.full_name
        for service in services()
        for method in service.methods
        if roles.declared(method) == Role.ROLE_UNSPECIFIED
    ]
    assert not without, "option (sendense.common.v1.role) is missing in their .proto"


def test_the_page_says_which_role_each_call_needs():
    rows = sorted(
        f"| `{service.full_name}/{method.name}` | {roles.role_name(roles.declared(method))} |"
        for service in services()
        for method in service.methods
    )
    listed = re.findall(r"^\| `sendense\.[\w.]+/\w+` \| .*$", PAGE.read_text(), re.MULTILINE)
    assert listed == rows, "the table should be:\n" + "\n".join(rows)


def test_what_agents_and_gateways_call_is_for_services_alone():
    internal = {"AgentService", "AuthorizationService", "LeaseService", "RedemptionService"}
    for service in services():
        if service.name in internal:
            internal.remove(service.name)
            assert {roles.declared(method) for method in service.methods} == {Role.ROLE_SERVICE}
    assert not internal


def test_what_nobody_knows_is_for_services_alone():
    assert roles.needed("/sendense.hub.v1.JobService/Unheard") == Role.ROLE_SERVICE
    assert roles.needed("/some.other.Service/Call") == Role.ROLE_SERVICE


def test_health_is_open_and_reflection_is_not():
    assert roles.needed("/grpc.health.v1.Health/Check") is None
    assert roles.needed("/grpc.health.v1.Health/Watch") == Role.ROLE_VIEWER
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    assert roles.needed(reflection) == Role.ROLE_VIEWER
