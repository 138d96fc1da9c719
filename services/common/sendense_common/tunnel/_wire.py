# SPDX-License-Identifier: Apache-2.0
"""What both ends of an SSH connection agree on: cipher, compression, packet and window sizes.

Measured on two cores, 1 GiB through one channel: packets of 32 KiB in windows of 2 MiB carry half of what
256 KiB in 4 MiB do; larger ones gain nothing and cost memory. Packets of that size only pay when malloc keeps
their memory (`tune_malloc`) instead of mapping and unmapping it for each of them.
"""

from __future__ import annotations

import ctypes

from sendense_common.tunnel import _zstd

PACKET_BYTES = 256 * 1024
WINDOW_BYTES = 4 * 1024 * 1024

ENCRYPTION = ["aes128-gcm@openssh.com"]

REVERSE_PATH = "/agent"
"""What an agent asks the hub to listen on; where that is at the hub, the hub decides."""

ENROLMENT_USER = "_enrol"
"""As whom an agent logs in that nobody knows yet; no site can have this name."""

ENROLMENT_TARGET = "enrolment"
"""The one name that such an agent may open."""

SUPERSEDED = "superseded by a newer connection"
"""The hub's last words to an agent whose reverse path another connection took over."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def compression_algs(*, zstd: bool) -> list[str]:
    """Compression methods in order of preference."""
    if not zstd:
        return ["none"]
    _zstd.register()
    return [_zstd.NAME, "none"]


def tune_malloc() -> None:
    """Makes glibc keep the memory of large packets; call once in a process that moves bulk data.

    Without it, each packet's buffers are mapped, faulted in and unmapped again: a quarter of the speed.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
    libc.mallopt(_M_TRIM_THRESHOLD, 128 * 1024 * 1024)
