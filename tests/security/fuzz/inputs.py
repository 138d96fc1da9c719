# SPDX-License-Identifier: Apache-2.0
"""Bytes for a request type: messages of all shapes, and what is no message. One seed gives the same bytes."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_DEEPEST = 4
_OVERSIZED_BYTES = 17 * 1024 * 1024
_INTEGERS = (0, 1, -1, 2, 7, 511, 512, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.5, -1e300, float("inf"), float("nan"))
_TEXTS = (
    *("", " ", ".", "..", "/", "../../../etc/passwd", "/dev/null", "a\0b", "'; DROP TABLE jobs; --", "%s%n"),
    *("{}", "\ufeff", "🙂" * 40, "é" * 300, "x" * 5000, "\x1b[31m", "nbd/x", "NaN", "-1", "*", "SHA256:"),
    *("00000000-0000-0000-0000-000000000000", "ssh-ed25519 AAAA", "\r\nHost: x", "file:///etc/shadow"),
)


def request(rng: random.Random, kind: Descriptor, known: Sequence[str]) -> bytes:
    """One input for a method that takes `kind`; `known` are names that mean something to the service."""
    choice = rng.random()
    if choice < 0.45:
        return _message(rng, kind, known).SerializePartialToString()
    if choice < 0.8:
        return _mutated(rng, _message(rng, kind, known).SerializePartialToString())
    if choice < 0.9:
        return rng.randbytes(rng.choice((0, 1, 3, 17, 200, 3000)))
    if choice < 0.9995:
        return _nested(rng, kind)
    return bytes(_OVERSIZED_BYTES)


def _message(rng: random.Random, kind: Descriptor, known: Sequence[str], depth: int = 0) -> Message:
    made = GetMessageClass(kind)()
    for field in kind.fields:
        if rng.random() < 0.3:
            continue
        count = rng.choice((0, 1, 1, 2, 5)) if field.is_repeated else 1
        for _ in range(count):
            _fill(rng, made, field, known, depth)
    return made


def _fill(
    rng: random.Random, made: Message, field: FieldDescriptor, known: Sequence[str], depth: int
) -> None:
    inner = field.message_type
    if inner is None:
        value = _value(rng, field, known)
        if field.is_repeated:
            getattr(made, field.name).append(value)
        else:
            setattr(made, field.name, value)
    elif inner.GetOptions().map_entry:
        entry = _message(rng, inner, known, depth + 1)
        target = getattr(made, field.name)
        if inner.fields_by_name["value"].message_type is None:
            target[entry.key] = entry.value  # type: ignore[attr-defined]
        else:
            target[entry.key].CopyFrom(entry.value)  # type: ignore[attr-defined]
    elif depth < _DEEPEST:
        value = _message(rng, inner, known, depth + 1)
        if field.is_repeated:
            getattr(made, field.name).append(value)
        else:
            getattr(made, field.name).CopyFrom(value)


def _value(rng: random.Random, field: FieldDescriptor, known: Sequence[str]) -> object:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 16, 32, 33, 64, 1000)))
        choice = rng.random()
        if choice < 0.2:
            return str(uuid.UUID(int=rng.getrandbits(128)))
        return rng.choice(known) if choice < 0.7 else rng.choice(_TEXTS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice(_FLOATS)
    if field.enum_type is not None:
        return rng.choice((*[each.number for each in field.enum_type.values], 99, -1))
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    value = rng.choice(_INTEGERS)
    if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        return value % 2**bits
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def _mutated(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(made))
        what = rng.randrange(5)
        if what == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            made[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif what == 2:
            made[at:at] = rng.randbytes(rng.choice((1, 2, 9)))
        elif what == 3 and len(made) > 1:
            del made[at : at + rng.choice((1, 2, 9))]
            made = made or bytearray(b"\0")
        else:
            made[at:at] = made[at : at + rng.choice((4, 40))] * rng.choice((2, 30))
    return bytes(made)


def _nested(rng: random.Random, kind: Descriptor) -> bytes:
    """A field in itself, and again, or groups that are never closed: deeper than anybody reads."""
    depth = rng.choice((50, 99, 100, 101, 1000, 20_000))
    number = rng.choice([field.number for field in kind.fields] or [1])
    if rng.random() < 0.5:
        return _varint(number << 3 | 3) * depth
    made = b""
    for _ in range(min(depth, 300)):
        made = _varint(number << 3 | 2) + _varint(len(made)) + made
    return made


def _varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])
