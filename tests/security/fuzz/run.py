# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.security.fuzz.run`: inputs for every request type and for the gateway; how they fare.

Root only: see `jail`. The same seed sends the same inputs. Exit code 1 when one was not refused in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.security.fuzz import gateway
from tests.security.fuzz.services import SERVICES, Result, attack

FLAT_BYTES = 64 * 1024 * 1024
"""What a process may grow by between a fifth of the inputs and all of them."""
_REPORT = Path("build/security.json")


async def everything(
    per_method: int, of_gateway: int, seed: int, say: Callable[[str], object]
) -> list[Result]:
    """Attacks all processes, one after another."""
    results = []
    for name in [*SERVICES, "gateway"]:
        directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
        try:
            if name == "gateway":
                result = await gateway.attack(directory, of_gateway, seed)
            else:
                async with SERVICES[name](directory) as target:
                    result = await attack(target, per_method, seed, say)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        results.append(result)
        say(
            f"{result.name}: {result.inputs} inputs in {result.seconds:.0f} s, "
            f"{result.before_bytes >> 20} -> {result.after_bytes >> 20} MiB, "
            f"{len(result.complaints)} complaints"
        )
    return results


def troubles(results: list[Result]) -> list[str]:
    """What is wrong; empty when all is well."""
    found = [complaint for result in results for complaint in result.complaints]
    found += [
        f"{result.name} grew from {result.before_bytes} to {result.after_bytes} bytes"
        for result in results
        if result.after_bytes - result.before_bytes > FLAT_BYTES
    ]
    return found


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--per-method", type=int, default=2000, help="inputs for each request type")
    parser.add_argument("--gateway", type=int, default=10_000, help="inputs for the gateway")
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    # It warns of each byte that is sent to who has hung up, which is what is looked for here.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    say(f"SEED={options.seed}")
    results = asyncio.run(everything(options.per_method, options.gateway, options.seed, say))
    found = troubles(results)
    for trouble in found[:20]:
        say(trouble[-2000:])
    facts = {
        "seed": options.seed,
        "inputs": sum(result.inputs for result in results),
        "methods": len({outcome.method for result in results for outcome in result.outcomes}),
        "troubles": len(found),
        "processes": {
            result.name: {
                "inputs": result.inputs,
                "seconds": round(result.seconds, 1),
                "before_bytes": result.before_bytes,
                "after_bytes": result.after_bytes,
            }
            for result in results
        },
    }
    _REPORT.parent.mkdir(exist_ok=True)
    _REPORT.write_text(json.dumps(facts, indent=2) + "\n")
    say(f"{facts['inputs']} inputs, {len(found)} troubles; again with SEED={options.seed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
