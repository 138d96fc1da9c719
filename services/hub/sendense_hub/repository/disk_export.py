# SPDX-License-Identifier: Apache-2.0
"""Writing one disk of a point to a file of its own. It appears under its name only when it is whole.

What was written is compared with the chain's ledgers before: see `output_check`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import AsyncGenerator
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.errors import SendenseError
from sendense_hub.repository import durable, programs
from sendense_hub.repository.document import PointDocument
from sendense_hub.repository.layout import Repository
from sendense_hub.repository.output_check import check_output
from sendense_hub.repository.part_files import PartFiles
from sendense_hub.repository.point_writer import check_chain
from sendense_hub.repository.verification import disk_chain

_FORMATS = {
    "raw": ["-O", "raw"],
    "qcow2": ["-O", "qcow2", "-o", "compat=1.1"],
    "vmdk": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
}
_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")
_GRACE_S = 3.0
# Of the time, where what was written is compared.
_CONVERTING = 0.5


async def export_disk(
    repository: Repository,
    document: PointDocument,
    disk_key: int,
    file_format: str,
    output: Path,
    *,
    run_dir: Path | None,
    parts: PartFiles,
) -> AsyncGenerator[float, None]:
    """Converts a disk to `output`, a new file; yields percents, 100 when it is whole, right and durable.

    Unallocated ranges stay holes. A caller that stops listening leaves nothing behind.

    Args:
        repository: where the point is.
        document: the point.
        disk_key: the disk.
        file_format: "raw", "qcow2" or "vmdk".
        output: absolute path; its directory must exist.
        run_dir: for sockets, and for as much as the ledgers of the chain hold. None: what was written is not
            compared with them.
        parts: remembers what is not whole.

    Raises:
        SendenseError: DISK_NOT_FOUND, OUTPUT_EXISTS, OUTPUT_UNWRITABLE, OUTPUT_FULL; POINT_CORRUPT
            with point, disk and offset.
    """
    document.disk(disk_key)
    try:
        taken = os.path.lexists(output)
    except (OSError, ValueError) as error:
        raise _unwritable(output, OSError(errno.EINVAL, str(error))) from error
    if taken:
        raise _exists(output)
    if run_dir is None:
        points = await asyncio.to_thread(repository.chain, document, disk_key)
        chain, layer = None, (await check_chain(repository, points, disk_key))[-1]
    else:
        chain = await disk_chain(repository, document, disk_key)
        layer = chain.layers[-1]
    with contextlib.ExitStack() as held:
        try:
            part = held.enter_context(parts.beside(output))
        except OSError as error:
            raise _unwritable(output, error) from error
        share = 1.0 if chain is None else _CONVERTING
        async with contextlib.aclosing(_convert(layer, part, file_format, output)) as percents:
            async for percent in percents:
                yield share * percent
        if chain is not None and run_dir is not None:
            async with contextlib.aclosing(check_output(chain, part, file_format, output, run_dir)) as shares:
                async for done in shares:
                    yield min(100 * (share + (1 - share) * done), 99.9)
        await asyncio.to_thread(_publish, part, output)
    yield 100.0


async def _convert(layer: Path, part: Path, file_format: str, output: Path) -> AsyncGenerator[float, None]:
    child = await programs.start(
        ["qemu-img", "convert", "-p", "-f", "qcow2", *_FORMATS[file_format], str(layer), str(part)]
    )
    assert child.stdout is not None
    assert child.stderr is not None
    errors = asyncio.create_task(child.stderr.read())
    try:
        while text := await child.stdout.read(4096):
            if found := _PERCENT.findall(text):
                yield min(float(found[-1]), 99.9)
        await child.wait()
        words = (await errors).decode(errors="replace").strip()
    finally:
        await process.stop(child, grace_s=_GRACE_S)
        errors.cancel()
        await asyncio.gather(errors, return_exceptions=True)
    outcome = programs.Outcome(child.returncode or 0, b"", words)
    if outcome.no_space:
        raise SendenseError(
            Reason.REASON_OUTPUT_FULL,
            f"there is no space left for {output}",
            remedy="Nothing was left there. Choose a place with more room, or a sparse format.",
            path=output,
        )
    if outcome.code:
        raise SendenseError(Reason.REASON_OUTPUT_UNWRITABLE, f"writing {output} failed: {words}", path=output)


def _publish(part: Path, output: Path) -> None:
    durable.sync_file(part)
    try:
        os.link(part, output)  # unlike a rename, a link never replaces what somebody else put there
    except FileExistsError as error:
        raise _exists(output) from error
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
            raise _unwritable(output, error) from error
        if output.exists():  # a file system without links
            raise _exists(output) from error
        part.rename(output)
    part.unlink(missing_ok=True)
    durable.sync_file(output.parent)


def _exists(output: Path) -> SendenseError:
    return SendenseError(
        Reason.REASON_OUTPUT_EXISTS,
        f"{output} exists already",
        remedy="An export never overwrites anything: choose another path.",
        path=output,
    )


def _unwritable(output: Path, error: OSError) -> SendenseError:
    full = error.errno == errno.ENOSPC
    return SendenseError(
        Reason.REASON_OUTPUT_FULL if full else Reason.REASON_OUTPUT_UNWRITABLE,
        f"{output}: {error.strerror}",
        remedy="Give an absolute path in a directory that exists and that the hub may write to.",
        path=output,
    )
