# SPDX-License-Identifier: Apache-2.0
"""How much memory and scratch space `sendense point verify` takes for a large disk, and whether that grows.

`python -m tests.bench.verifier_memory GIB STEP_KIB RECORD_KIB [layer]`, needs no root. The verifier's own
process looks at a sparse layer of GIB through qemu-nbd, as for a verification: first the layer against its
ledger, then the whole view (not with `layer`). The ledger is generated in the documented format: a data
record of RECORD_KIB (its SHA-256 is that of zeroes, which the sparse layer shows) at every STEP_KIB, in an
order in which no two neighbours are together, as disks that are written at random have it. What takes memory
is the records; what they cover is read one block at a time. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sendense_hub.repository.export import open_export
from sendense_hub.repository.ledger import RECORD
from sendense_hub.repository.verifier_process import VerifierProcess, verifier_process

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_BATCH = 65_536
# Prime to every power of two: each offset comes once, and the next one is far away.
_STRIDE = 40_503
_POLL_S = 0.2


def offsets(capacity_bytes: int, step_bytes: int) -> Iterator[int]:
    """Each multiple of the step once."""
    count = capacity_bytes // step_bytes
    return ((number * _STRIDE % count) * step_bytes for number in range(count))


def write_ledger(path: Path, capacity_bytes: int, step_bytes: int, record_bytes: int) -> int:
    """How many records it has. Blocks."""
    digest, count, packed = hashlib.sha256(bytes(record_bytes)).digest(), 0, bytearray()
    with path.open("wb") as file:
        for offset in offsets(capacity_bytes, step_bytes):
            packed += RECORD.pack(offset, record_bytes, 1, digest)
            count += 1
            if count % _BATCH == 0:
                file.write(packed)
                packed.clear()
        file.write(packed)
    return count


async def used(directory: Path, verifier: VerifierProcess, facts: dict[str, Any]) -> None:
    """The most that it took so far: memory of the verifier's process, files in its scratch directory."""
    pid = verifier._child.pid
    while True:
        with contextlib.suppress(OSError):  # files come and go
            status = Path(f"/proc/{pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            facts["peak_rss_mib"] = round(int(peak.split()[1]) / KIB, 1)
            scratch = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
            facts["scratch_mib"] = max(facts.get("scratch_mib", 0), scratch // MIB)
        await asyncio.sleep(_POLL_S)


async def measure(capacity_bytes: int, step_bytes: int, record_bytes: int, *, whole: bool) -> dict[str, Any]:
    """What the steps of a verification took."""
    facts: dict[str, Any] = {
        "capacity_gib": capacity_bytes // GIB,
        "step_kib": step_bytes // KIB,
        "record_kib": record_bytes // KIB,
    }
    with tempfile.TemporaryDirectory(prefix="sd-bench-") as made:
        directory = Path(made)
        layer, ledger, scratch = directory / "layer.qcow2", directory / "ledger", directory / "scratch"
        scratch.mkdir()
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", str(layer), str(capacity_bytes)], check=True
        )
        facts["records"] = await asyncio.to_thread(
            write_ledger, ledger, capacity_bytes, step_bytes, record_bytes
        )
        facts["ledger_mib"] = ledger.stat().st_size // MIB
        export = await open_export(
            layer, "v", directory / "v.sock", capacity_bytes=capacity_bytes, connections=1, read_only=True
        )
        try:
            async with verifier_process(scratch) as verifier:
                watching = asyncio.create_task(used(scratch, verifier, facts))
                tasks: list[dict[str, Any]] = [{"do": "layer", "uri": export.uri, "ledger": str(ledger)}]
                if whole:
                    tasks.append({"do": "whole", "uri": export.uri, "ledgers": [str(ledger)]})
                for task in tasks:
                    began = time.monotonic()
                    last: dict[str, Any] = {}
                    async for report in verifier.do(**task):
                        last = report
                    assert last.get("done"), last
                    await asyncio.sleep(2 * _POLL_S)
                    facts[f"{task['do']}_s"] = round(time.monotonic() - began)
                    facts[f"{task['do']}_peak_rss_mib"] = facts["peak_rss_mib"]
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        finally:
            await export.stop()
    return facts


def main() -> int:
    """Measures once."""
    gib, step_kib, record_kib = map(int, sys.argv[1:4])
    whole = sys.argv[4:] != ["layer"]
    facts = asyncio.run(measure(gib * GIB, step_kib * KIB, record_kib * KIB, whole=whole))
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
