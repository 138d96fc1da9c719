# SPDX-License-Identifier: Apache-2.0
"""The guest of the demonstration: real ext4 file systems, and what its programs do to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense_lab.client import LabClient, LabMachine
from sendense_lab.demo.command_line import DemoError
from sendense_lab.guest_images import make_ext4, run_program

_MIB = 1024 * 1024
_PIECE_BYTES = 64 * 1024
_NEWS = "news.txt"
_NEW_DATA_BYTES = 24 * _MIB


@dataclass(frozen=True)
class GuestDisk:
    """One disk as it is made."""

    capacity_bytes: int
    data_bytes: int


@dataclass(frozen=True)
class Guest:
    """A VM in the simulated vCenter, with an image of each disk that shows what is on it now."""

    lab: LabClient
    machine: LabMachine
    images: tuple[Path, ...]

    @classmethod
    async def make(cls, lab: LabClient, name: str, disks: tuple[GuestDisk, ...], directory: Path) -> Guest:
        """Makes the file systems and the VM; images are kept in `directory`."""
        images = tuple(directory / f"disk-{number}.img" for number in range(len(disks)))
        for number, (image, disk) in enumerate(zip(images, disks, strict=True)):
            await make_ext4(image, disk.capacity_bytes, disk.data_bytes, seed=number + 1)
        specs = [
            {"capacity_bytes": disk.capacity_bytes, "image": str(image)}
            for image, disk in zip(images, disks, strict=True)
        ]
        return cls(lab, await lab.add_vm(name, specs), images)

    async def work(self) -> int:
        """Writes files and deletes others on every disk, as a guest would; gives the bytes that it wrote."""
        written = 0
        for key, image in zip(self.machine.disks, self.images, strict=True):
            before = image.with_suffix(".before")
            await run_program("cp", "--sparse=always", str(image), str(before))
            await _edit(image)
            for offset, data in _differences(before, image):
                await self.lab.guest_write(self.machine.name, key, offset, data)
                written += len(data)
            before.unlink()
        return written


async def _edit(image: Path) -> None:
    """Adds two files and deletes one, through the file system itself."""
    news, data = image.with_name(_NEWS), image.with_name("new-data")
    news.write_text("Written by the guest after the full backup.\n")
    data.write_bytes(os.urandom(_NEW_DATA_BYTES))
    script = image.with_name("script")
    script.write_text(f"write {news} {_NEWS}\nwrite {data} new-data\nrm 000/file-00000\n")
    await run_program("debugfs", "-w", "-f", str(script), str(image))


def _differences(before: Path, after: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, new bytes) of all pieces of 64 KiB that differ."""
    with before.open("rb") as old, after.open("rb") as new:
        offset = 0
        while piece := new.read(_PIECE_BYTES):
            if piece != old.read(_PIECE_BYTES):
                yield offset, piece
            offset += len(piece)


async def check_file_system(image: Path, *, has_news: bool) -> None:
    """Has e2fsck look at a restored file system, and looks for the file that the guest wrote in between.

    Raises:
        DemoError: it is damaged, or has the wrong files.
    """
    await run_program("e2fsck", "-f", "-n", str(image))
    listing = await run_program("debugfs", "-R", "ls -p /", str(image))
    if (f"/{_NEWS}/" in listing) != has_news:
        raise DemoError(f"{image.name}: {_NEWS} should {'' if has_news else 'not '}be in it")
