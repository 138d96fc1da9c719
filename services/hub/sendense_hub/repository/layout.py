# SPDX-License-Identifier: Apache-2.0
"""Where things are in a repository: ROOT/<vCenter's UUID>/<VM's UUID>/<point>/."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository import durable
from sendense_hub.repository.damage import damaged
from sendense_hub.repository.document import PointDocument

MARKER = "sendense-repository.json"
CATALOGS = "hub-catalogs"
DOCUMENT = "point.json"
DELETING = "point.json.deleting"
PROBE = ".probe-"
"""What the names of files begin with that are there for a moment, beside the marker."""
_FORMAT_VERSION = 1
_NOT_AS_IT_WAS = frozenset(
    {Reason.REASON_POINT_INCOMPLETE, Reason.REASON_POINT_CORRUPT, Reason.REASON_DISK_NOT_FOUND}
)
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


@dataclass(frozen=True)
class Space:
    """Of the file system a repository is on."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class LayerRef:
    """One layer."""

    directory: str
    """Of its point, relative to the repository."""
    disk_key: int
    file: str
    capacity_bytes: int


@dataclass(frozen=True)
class Repository:
    """A directory of restore points; opened by `open_repository`."""

    name: str
    root: Path
    repository_id: str

    def space(self) -> Space:
        """REPOSITORY_UNAVAILABLE when the directory is gone or not this repository (not mounted). Blocks."""
        try:
            facts = json.loads((self.root / MARKER).read_bytes())
            usage = shutil.disk_usage(self.root)
        except OSError as error:
            raise unavailable(self.root, error) from error
        except ValueError:
            facts = None
        if not isinstance(facts, dict) or facts.get("repository_id") != self.repository_id:
            raise SendenseError(
                Reason.REASON_REPOSITORY_UNAVAILABLE,
                f"{self.root} does not hold repository {self.repository_id} any more",
                remedy="Check that it is mounted as it was.",
                repository=self.name,
            )
        return Space(usage.free, usage.total)

    def point_path(self, directory: str) -> Path:
        """Absolute path of a point's directory."""
        return self.root / directory

    def directory_of(self, vcenter_uuid: str, vm_uuid: str, point_id: str) -> str:
        """The directory of a point, relative to the repository; INVALID_REQUEST for an ID that is no name."""
        for part in (vcenter_uuid, vm_uuid, point_id):
            if not ID.fullmatch(part):
                raise SendenseError(
                    Reason.REASON_INVALID_REQUEST, f"{part!r} cannot be the name of a directory"
                )
        return f"{vcenter_uuid}/{vm_uuid}/{point_id}"

    def has_mark(self, directory: str) -> bool:
        """Whether a point's commit mark is there. Blocks."""
        return (self.root / directory / DOCUMENT).exists()

    def settled_document(self, directory: str) -> PointDocument:
        """`read_document`, of a point whose writer is gone before it said so. Blocks.

        The mark is made durable first: whoever set it may not have come to that.

        Raises:
            SendenseError: as `read_document`; REPOSITORY_UNAVAILABLE.
        """
        document = self.read_document(directory)
        try:
            durable.sync_file(self.root / directory)
        except OSError as error:
            raise unavailable(self.root / directory, error) from error
        return document

    def read_document(self, directory: str) -> PointDocument:
        """What a complete point says about itself. Blocks.

        Raises:
            SendenseError: POINT_INCOMPLETE without the commit mark, POINT_CORRUPT.
        """
        path = self.root / directory / DOCUMENT
        try:
            text = path.read_bytes()
        except FileNotFoundError as error:
            raise SendenseError(
                Reason.REASON_POINT_INCOMPLETE,
                f"{path} is missing: the point was never completed, or is being deleted",
                remedy="Check that the repository is mounted as it was.",
            ) from error
        except OSError as error:
            raise unavailable(path, error) from error
        try:
            return PointDocument.from_json(text, where=str(path))
        except SendenseError as error:
            error.metadata["point"] = path.parent.name
            raise

    def chain(self, document: PointDocument, disk_key: int) -> list[PointDocument]:
        """The points whose layers make up one disk: from the full to `document` itself. Blocks.

        Raises:
            SendenseError: POINT_CORRUPT with point and disk when one of them is not what it was.
        """
        points = [document]
        while parent := points[-1].disk(disk_key).parent_point_id:
            if any(parent == each.point_id for each in points):
                raise damaged(document.point_id, disk_key, "its chain runs in a circle")
            directory = self.directory_of(document.vcenter_uuid, document.vm_instance_uuid, parent)
            try:
                points.append(self.read_document(directory))
                points[-1].disk(disk_key)
            except SendenseError as error:
                if error.reason not in _NOT_AS_IT_WAS:
                    raise
                words = f"disk {disk_key} of point {document.point_id} is built on it: {error.message}"
                raise damaged(parent, None, words) from error
        return points[::-1]

    def layer_path(self, document: PointDocument, disk_key: int) -> Path:
        """The layer of one disk."""
        directory = self.directory_of(document.vcenter_uuid, document.vm_instance_uuid, document.point_id)
        return self.root / directory / document.disk(disk_key).layer_file

    def directories(self) -> Iterator[str]:
        """Directories of all points, complete or not. Blocks."""
        for path in sorted(self.root.glob("*/*/*/")):
            yield str(path.relative_to(self.root))


async def open_repository(name: str, root: Path) -> Repository:
    """Opens a repository; makes it in a directory that is missing or empty.

    Raises:
        SendenseError: REPOSITORY_NOT_FOUND when the directory holds something else, REPOSITORY_UNAVAILABLE.
    """
    return await asyncio.to_thread(_open, name, root.absolute())


def unavailable(path: Path, error: OSError) -> SendenseError:
    """REPOSITORY_UNAVAILABLE or REPOSITORY_FULL: what the file system said."""
    full = error.errno in {28, 122}  # ENOSPC, EDQUOT
    return SendenseError(
        Reason.REASON_REPOSITORY_FULL if full else Reason.REASON_REPOSITORY_UNAVAILABLE,
        f"{path}: {error.strerror or error}",
        remedy="Make room in the repository." if full else "Check the disk or mount it is on.",
    )


def _open(name: str, root: Path) -> Repository:
    marker = root / MARKER
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not marker.exists():
            if any(root.iterdir()):
                raise SendenseError(
                    Reason.REASON_REPOSITORY_NOT_FOUND,
                    f"{root} is not empty and not a repository: {MARKER} is missing",
                    remedy="Check that it is mounted, or give an empty directory.",
                    repository=name,
                )
            made = {"format_version": _FORMAT_VERSION, "repository_id": str(uuid.uuid4())}
            durable.write_file(marker, json.dumps(made).encode() + b"\n")
        facts = json.loads(marker.read_bytes())
        if facts["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"format version {facts['format_version']}")
        return Repository(name, root, str(facts["repository_id"]))
    except OSError as error:
        raise unavailable(root, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SendenseError(
            Reason.REASON_REPOSITORY_NOT_FOUND,
            f"{marker} cannot be understood: {error}",
            remedy="Restore it from a copy, or use another directory.",
            repository=name,
        ) from error
