# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_hub.repository.sampler URI SEED PERCENT MAX_BYTES LEDGER…`: some of what a chain holds.

URI: the newest view, by NBD; the ledgers are those of all layers. Writes records as in ledgers to its output,
ascending: data with its SHA-256, or zeroes, as they are read from the view now.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import nbd

from sendense_hub.repository.audit_sample import Range, draw
from sendense_hub.repository.ledger import RECORD

_ZEROES, _DATA = 0, 1
_IN_FLIGHT = 8


def main() -> int:
    """Runs."""
    uri, seed, percent, max_bytes, *ledgers = sys.argv[1:]
    view = nbd.NBD()
    view.set_uri_allow_local_file(True)
    view.connect_uri(uri)
    wanted = draw(
        [Path(each) for each in ledgers],
        view.get_size(),
        share=float(percent) / 100,
        max_bytes=int(max_bytes),
        dice=random.Random(int(seed)),
    )
    for start in range(0, len(wanted), _IN_FLIGHT):
        _write(view, wanted[start : start + _IN_FLIGHT])
    return 0


def _write(view: nbd.NBD, ranges: list[Range]) -> None:
    """Records of some ranges, which are read at once."""
    asked = []
    for offset, length in ranges:
        buffer = nbd.Buffer(length)
        asked.append((offset, length, buffer, view.aio_pread(buffer, offset)))
    for offset, length, buffer, cookie in asked:
        while not view.aio_command_completed(cookie):
            view.poll(-1)
        data = buffer.to_bytearray()
        zeroes = not any(data)
        digest = b"" if zeroes else hashlib.sha256(data).digest()
        sys.stdout.buffer.write(RECORD.pack(offset, length, _ZEROES if zeroes else _DATA, digest))


if __name__ == "__main__":
    sys.exit(main())
