# SPDX-License-Identifier: Apache-2.0
"""Disk images with real file systems in them, made without mounting anything."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from pathlib import Path

from sendense_lab.client import LabError

_FILE_BYTES = 8 * 1024 * 1024
# Where the tools for file systems are; for users other than root it is not on the PATH.
_SYSTEM_PROGRAMS = "/usr/sbin:/sbin"


async def make_ext4(image: Path, capacity_bytes: int, data_bytes: int, *, seed: int) -> None:
    """Makes an ext4 file system with files in it.

    Args:
        image: the new file; sparse.
        capacity_bytes: of the file system; a multiple of 4096.
        data_bytes: in files; half of it is text that compresses, half is noise.
        seed: the same one gives the same files.

    Raises:
        LabError: mkfs.ext4 did not work.
    """
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        await asyncio.to_thread(_make_files, Path(directory), data_bytes, seed)
        with image.open("wb") as file:
            file.truncate(capacity_bytes)
        await run_program("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-d", directory, str(image))


async def run_program(*command: str) -> str:
    """Runs a program that works on images and gives what it said; LabError when it failed."""
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PROGRAMS}"
    child = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PATH": path},
    )
    output, _ = await child.communicate()
    words = output.decode(errors="replace").strip()
    if child.returncode:
        raise LabError(f"{' '.join(command)}: {words}")
    return words


def _make_files(directory: Path, data_bytes: int, seed: int) -> None:
    for number in range(-(-data_bytes // _FILE_BYTES)):
        length = min(_FILE_BYTES, data_bytes - number * _FILE_BYTES)
        name = f"{seed}-{number}".encode()
        path = directory / f"{number // 32:03d}" / f"file-{number:05d}"
        path.parent.mkdir(exist_ok=True)
        if number % 2:
            path.write_bytes(hashlib.shake_128(name).digest(length))
        else:
            line = b"%s: the quick brown fox jumps over the lazy dog\n" % name
            path.write_bytes((line * (length // len(line) + 1))[:length])
