# SPDX-License-Identifier: Apache-2.0
"""zstd as an SSH compression method.

SSH's own zlib tops out near 36 MiB/s per connection; zstd level 1 does several hundred and compresses about
as well. The name is private to us, as RFC 4253 asks (`name@domain`), and both ends are ours.

A peer may send a bomb: a few bytes that decompress to gigabytes. One packet's output is capped, and so is the
window that the decompressor must keep; asyncssh ends the connection when `decompress` returns None.
"""

from __future__ import annotations

import functools

from asyncssh.compression import Compressor, Decompressor, register_compression_alg
from backports import zstd

NAME = "zstd@sendense"

_LEVEL = 1
# The largest honest packet carries 256 KiB and a header.
_MAX_PACKET_BYTES = 1024 * 1024
# Level 1 uses 2^19; a larger window would only be memory.
_WINDOW_LOG_MAX = 21


class ZstdCompressor(Compressor):
    """Compresses packets of one direction of one connection; each packet is complete by itself."""

    def __init__(self) -> None:
        self._stream = zstd.ZstdCompressor(level=_LEVEL)

    def compress(self, data: bytes) -> bytes:
        """One packet, flushed, so that the far end can decompress it at once."""
        packet: bytes = self._stream.compress(data, self._stream.FLUSH_BLOCK)
        return packet


class ZstdDecompressor(Decompressor):
    """Decompresses packets of one direction of one connection, within bounds."""

    def __init__(self) -> None:
        self._stream = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
        )

    def decompress(self, data: bytes) -> bytes | None:
        """One packet; None, which ends the connection, for damaged data and for bombs."""
        try:
            packet: bytes = self._stream.decompress(data, _MAX_PACKET_BYTES)
        except (zstd.ZstdError, EOFError):
            return None
        return packet if self._stream.needs_input else None


@functools.cache
def register() -> None:
    """Makes the method known to asyncssh in this process; it is used only where it is asked for."""
    register_compression_alg(NAME.encode(), ZstdCompressor, ZstdDecompressor, after_auth=True, default=False)
