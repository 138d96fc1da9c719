# SPDX-License-Identifier: Apache-2.0
"""protos/README.md and the contracts say the same, and the contracts say what everything in them means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped]
from tests.unit.packaging.containers import ROOT

from sendense_common.errors import CODES

pytestmark = pytest.mark.unit

PROTOS = ROOT / "protos"
README = PROTOS / "README.md"
_UNSIGNED = {
    FieldDescriptorProto.TYPE_UINT32,
    FieldDescriptorProto.TYPE_UINT64,
    FieldDescriptorProto.TYPE_FIXED32,
    FieldDescriptorProto.TYPE_FIXED64,
}
_INTEGERS = {FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_INT64}
# Integers that count nothing and measure nothing, or whose unit is the word itself.
_WITHOUT_UNIT = {
    "key",
    "disk_key",
    "fruitless_attempts",
    "newest_protocol",
    "oldest_protocol",
    "protocol",
    "untrusted_disk_keys",
    "audit_mismatches",
    "mismatches",
    "era",
    "port",
    "attempt",
    "seq",
    "sequence",
    "known_sequence",
    "after_seq",
    "page_size",
}


@cache
def contracts(directory: Path) -> list[FileDescriptorProto]:
    """All files with their comments, freshly parsed."""
    output = directory / "contracts.binpb"
    names = sorted(str(file.relative_to(PROTOS)) for file in PROTOS.glob("sendense/*/v1/*.proto"))
    assert len(names) >= 15
    arguments = ["protoc", f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    arguments += ["--include_source_info", f"--descriptor_set_out={output}", *names]
    assert protoc.main(arguments) == 0
    return list(FileDescriptorSet.FromString(output.read_bytes()).file)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    return contracts(tmp_path_factory.mktemp("contracts"))


def table(files: list[FileDescriptorProto]) -> list[str]:
    """The rows that the README should have."""
    rows = []
    for file in files:
        for service in file.service:
            for method in service.method:
                streams = {
                    (False, False): "",
                    (False, True): "answers",
                    (True, False): "requests",
                    (True, True): "both",
                }[method.client_streaming, method.server_streaming]
                rows.append(f"| `{file.package}.{service.name}` | `{method.name}` | {streams} |")
    return [re.sub(" +", " ", row) for row in sorted(rows)]


def test_the_readme_lists_all_calls_and_no_others(files: list[FileDescriptorProto]):
    listed = re.findall(
        r"^\| `sendense\.[a-z0-9.]+\.[A-Za-z]+` \| `[A-Za-z]+` \|.*$", README.read_text(), re.MULTILINE
    )
    assert sorted(listed) == table(files), "the table should be:\n" + "\n".join(table(files))


def test_the_readme_says_where_each_service_is_served(files: list[FileDescriptorProto]):
    served = re.findall(r"^\| `([A-Za-z]+)` \| `[a-z]+\.sock`", README.read_text(), re.MULTILINE)
    assert sorted(served) == sorted(service.name for file in files for service in file.service)


def uncommented(file: FileDescriptorProto) -> Iterator[str]:
    """What has no comment in front of it."""
    commented = {
        tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()
    }

    def parts() -> Iterator[tuple[tuple[int, ...], str]]:
        for number, message in enumerate(file.message_type):
            yield (4, number), message.name
            assert all(nested.options.map_entry for nested in message.nested_type)
            assert not message.enum_type
            for inner, field in enumerate(message.field):
                yield (4, number, 2, inner), f"{message.name}.{field.name}"
            # "optional" makes one of its own for the field, without a place in the text.
            made = {field.oneof_index for field in message.field if field.proto3_optional}
            for inner, oneof in enumerate(message.oneof_decl):
                if inner in made:
                    continue
                yield (4, number, 8, inner), f"{message.name}.{oneof.name}"
        for number, enum in enumerate(file.enum_type):
            yield (5, number), enum.name
            for inner, value in enumerate(enum.value):
                yield (5, number, 2, inner), value.name
        for number, service in enumerate(file.service):
            yield (6, number), service.name
            for inner, method in enumerate(service.method):
                yield (6, number, 2, inner), f"{service.name}.{method.name}"

    for path, name in parts():
        if path not in commented:
            yield f"{file.name}: {name}"


def test_every_service_call_message_field_and_value_has_a_comment(files: list[FileDescriptorProto]):
    assert [name for file in files for name in uncommented(file)] == []


def test_numbers_are_signed_and_say_their_unit(files: list[FileDescriptorProto]):
    for file in files:
        for message in file.message_type:
            for field in message.field:
                where = f"{file.name}: {message.name}.{field.name}"
                assert field.type not in _UNSIGNED, where
                if field.type in _INTEGERS:
                    assert field.name in _WITHOUT_UNIT or {"bytes", "count"} & {*field.name.split("_")}, where


def test_every_reason_has_a_status(files: list[FileDescriptorProto]):
    (reasons,) = (enum for file in files for enum in file.enum_type if enum.name == "Reason")
    assert sorted(CODES) == sorted(value.number for value in reasons.value)
