# SPDX-License-Identifier: Apache-2.0
"""What a QCOW2 header says, read without QEMU: a scan looks at very many of them. Blocks."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"QFI\xfb"
# magic, version, offset and length of the backing file's name, cluster bits, virtual size
_HEAD = struct.Struct(">4sIQIIQ")
_FEATURES = struct.Struct(">Q")
_FEATURES_AT = 72
_LONGEST_NAME_BYTES = 1023
_EXTERNAL_DATA_FILE = 1 << 2


@dataclass(frozen=True)
class LayerHeader:
    """One layer's."""

    capacity_bytes: int
    backing: str
    """As it is written there; empty: none."""


def read(path: Path) -> LayerHeader:
    """The header of a layer.

    Raises:
        ValueError: it is no QCOW2 file, or one that Sendense does not make.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_FEATURES_AT + _FEATURES.size)
        if len(head) < _FEATURES_AT + _FEATURES.size or not head.startswith(_MAGIC):
            raise ValueError("it is not a QCOW2 file")
        _, version, name_at, name_bytes, _, capacity_bytes = _HEAD.unpack_from(head)
        if version != 3:
            raise ValueError(f"it is QCOW2 of version {version}")
        (features,) = _FEATURES.unpack_from(head, _FEATURES_AT)
        if features & _EXTERNAL_DATA_FILE:
            raise ValueError("its data is in another file")
        backing = b""
        if name_at:
            if name_bytes > _LONGEST_NAME_BYTES:
                raise ValueError("the name of its backing file is too long")
            file.seek(name_at)
            backing = file.read(name_bytes)
            if len(backing) < name_bytes:
                raise ValueError("it is cut off")
    return LayerHeader(capacity_bytes, backing.decode(errors="replace"))
