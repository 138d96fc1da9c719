# SPDX-License-Identifier: Apache-2.0
"""Whether a copy of a disk is what the ledgers say, byte for byte, before anybody gets it.

The copy itself is read. Whatever it cannot tell alone (a record that a later layer replaced in part, and any
byte that is wrong) is looked at in the view that can: so damage in the repository is told with point, disk
and offset, and a copy that went wrong by itself is not taken for it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository.export import open_copy
from sendense_hub.repository.verification import DiskChain, checked, open_view
from sendense_hub.repository.verifier_process import verifier_process


async def check_output(
    chain: DiskChain, copy: Path, file_format: str, output: Path, run_dir: Path
) -> AsyncGenerator[float, None]:
    """Yields how much was compared, 0 to 1; ends when all of it is right.

    Args:
        chain: what was copied: the newest view of it.
        copy: the file.
        file_format: of the file.
        output: its name to be, for errors.
        run_dir: for sockets, and for as much as the ledgers of the chain hold.

    Raises:
        SendenseError: POINT_CORRUPT with point, disk and offset; OUTPUT_UNWRITABLE when the copy alone is
            wrong.
    """
    copied_bytes = sum(point.disk(chain.disk_key).copied_bytes for point in chain.points)
    newest = len(chain.layers) - 1
    with tempfile.TemporaryDirectory(dir=run_dir, prefix="v") as name:
        scratch = Path(name)
        async with verifier_process(scratch) as verifier, contextlib.AsyncExitStack() as stack:
            served = await open_copy(
                copy,
                "copy",
                scratch / "copy.sock",
                capacity_bytes=chain.capacity_bytes,
                file_format=file_format,
            )
            stack.push_async_callback(served.stop)
            ledgers = [str(each) for each in chain.ledgers]
            doubts: list[int] = []
            reading = verifier.do(do="output", uri=served.uri, ledgers=ledgers)
            async for report in checked(reading, chain, newest):
                _refuse(report, chain, output)
                doubts = report.get("doubts", [])
                yield min(report["read_bytes"] / copied_bytes, 1.0) if copied_bytes else 1.0
            for number in doubts:
                async with open_view(chain, number, scratch) as uri:
                    looking = verifier.do(do="doubt", uri=uri, layer=number)
                    async for report in checked(looking, chain, number):
                        _refuse(report, chain, output)
                        yield min(report["read_bytes"] / copied_bytes, 1.0) if copied_bytes else 1.0


def _refuse(report: dict[str, object], chain: DiskChain, output: Path) -> None:
    if "problem" in report:
        raise SendenseError(
            Reason.REASON_OUTPUT_UNWRITABLE,
            f"{output} is not what was read at byte {report['offset_bytes']}: {report['problem']}; the point "
            "itself is right there",
            remedy="Nothing was left there. Check the disk and the memory, and export it again.",
            point=chain.points[-1].point_id,
            disk=chain.disk_key,
            offset=report["offset_bytes"],
            path=output,
        )
