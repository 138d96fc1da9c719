# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_hub.repository.digester URI OUTPUT LEDGER…`: what a chain holds, as digests.

URI: the newest view, by NBD; OUTPUT: path of a new file; the ledgers of all layers, the full's first. Where
ledgers have no digest of what is left of a record, the view is read. The file holds records as ledgers do,
data only, ascending; one of kind 2 is the last, and zeroes fill the file to whole pages. Writes one line of
JSON: {"records", "read_bytes", "file_bytes"}.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import nbd

from sendense_hub.repository.digests import DATA, END, merged
from sendense_hub.repository.effective import UNKNOWN
from sendense_hub.repository.ledger import RECORD

_PAGE_BYTES = 4096


def main() -> int:
    """Runs."""
    uri, output, *ledgers = sys.argv[1], *map(Path, sys.argv[2:])
    view = nbd.NBD()
    view.set_uri_allow_local_file(True)
    view.connect_uri(uri)
    capacity_bytes = view.get_size()
    count = read_bytes = 0
    with output.open("xb") as file:
        for record in merged(ledgers, capacity_bytes, output.parent):
            sha256 = record.sha256
            if sha256 == UNKNOWN:
                sha256 = hashlib.sha256(view.pread(record.length_bytes, record.offset_bytes)).digest()
                read_bytes += record.length_bytes
            file.write(RECORD.pack(record.offset_bytes, record.length_bytes, DATA, sha256))
            count += 1
        file.write(RECORD.pack(capacity_bytes, 0, END, b""))
        file.write(bytes(-file.tell() % _PAGE_BYTES))
        file_bytes = file.tell()
    sys.stdout.write(
        json.dumps({"records": count, "read_bytes": read_bytes, "file_bytes": file_bytes}) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
