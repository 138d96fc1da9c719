# SPDX-License-Identifier: Apache-2.0
"""Reading a repository without a catalog: which points are there, and what else is. Changes nothing.

Every point.json, every layer's header and every ledger is read, not the data: that is what verifying is for.
Links are never followed. All of it blocks.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sendense_common.errors import SendenseError
from sendense_hub.repository import layer_header, ledger
from sendense_hub.repository.document import DiskDocument, PointDocument
from sendense_hub.repository.layout import (
    CATALOGS,
    DELETING,
    DOCUMENT,
    ID,
    MARKER,
    PROBE,
    Repository,
    unavailable,
)
from sendense_hub.repository.owner import OWNER

# What belongs to a disk, in a point's directory; also of a job that runs.
_OF_A_DISK = re.compile(r"disk-\d+\.[a-z0-9.]+")
_OURS_FOR_A_MOMENT = (".point.json.new",)


class FindingKind(enum.StrEnum):
    """See ScanFindingKind in the contract; these are the ones that a repository alone shows."""

    HALF_POINT = "half_point"
    HALF_DELETED = "half_deleted"
    FOREIGN = "foreign"
    UNREADABLE = "unreadable"
    DAMAGED = "damaged"
    CHAIN_BROKEN = "chain_broken"


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of."""

    kind: FindingKind
    path: str
    """Relative to the repository."""
    words: str
    point_id: str = ""


@dataclass
class MachineScan:
    """What is in the directory of one VM."""

    directory: str
    """Relative to the repository."""
    points: dict[str, PointDocument] = field(default_factory=dict)
    """Complete points by their directory, relative to the repository."""
    findings: list[Finding] = field(default_factory=list)


def machines(repository: Repository) -> tuple[list[str], list[Finding]]:
    """Directories of all VMs, relative to the repository; and what else lies above them.

    Raises:
        SendenseError: REPOSITORY_UNAVAILABLE.
    """
    found: list[str] = []
    findings: list[Finding] = []
    try:
        for vcenter in _entries(repository.root):
            if vcenter.name in {MARKER, CATALOGS} or vcenter.name.startswith((f".{MARKER}", PROBE)):
                continue
            if not _is_ours(vcenter):
                findings.append(_foreign(vcenter.name))
                continue
            for machine in _entries(Path(vcenter.path)):
                directory = f"{vcenter.name}/{machine.name}"
                if _is_ours(machine):
                    found.append(directory)
                else:
                    findings.append(_foreign(directory))
    except OSError as error:
        raise unavailable(repository.root, error) from error
    return found, findings


def machine(repository: Repository, directory: str) -> MachineScan:
    """All points of one VM.

    Args:
        repository: where.
        directory: of the VM, relative to the repository.

    Raises:
        SendenseError: REPOSITORY_UNAVAILABLE.
    """
    scan = MachineScan(directory)
    try:
        for entry in _entries(repository.root / directory):
            where = f"{directory}/{entry.name}"
            if _is_ours(entry):
                _look_at(repository, where, scan)
            else:
                scan.findings.append(_foreign(where))
    except FileNotFoundError:
        return scan  # its last point was deleted meanwhile
    except OSError as error:
        raise unavailable(repository.root / directory, error) from error
    scan.findings += _chains(repository, scan)
    return scan


def _look_at(repository: Repository, where: str, scan: MachineScan) -> None:
    """One point's directory."""
    try:
        names = {entry.name for entry in _entries(repository.root / where)}
    except FileNotFoundError:
        return  # deleted meanwhile
    point_id = Path(where).name
    document = None
    if DOCUMENT in names:
        try:
            document = repository.read_document(where)
            _check_place(document, where)
        except SendenseError as error:
            scan.findings.append(Finding(FindingKind.UNREADABLE, where, error.message, point_id))
            return
        except (ValueError, TypeError) as error:
            scan.findings.append(Finding(FindingKind.UNREADABLE, where, str(error), point_id))
            return
        scan.points[where] = document
    elif DELETING in names:
        scan.findings.append(
            Finding(FindingKind.HALF_DELETED, where, "its deletion was not finished", point_id)
        )
        return
    elif names - {OWNER} and not any(_OF_A_DISK.fullmatch(name) for name in names):
        scan.findings.append(_foreign(where))
        return
    else:
        words = "it was never completed: there is no point.json"
        scan.findings.append(Finding(FindingKind.HALF_POINT, where, words, point_id))
        return
    for name in sorted(names - {DOCUMENT, *_OURS_FOR_A_MOMENT}):
        if not _OF_A_DISK.fullmatch(name):
            scan.findings.append(_foreign(f"{where}/{name}"))


def _check_place(document: PointDocument, where: str) -> None:
    """A document that was copied to another place speaks of other files; ValueError."""
    said = f"{document.vcenter_uuid}/{document.vm_instance_uuid}/{document.point_id}"
    if said != where:
        raise ValueError(f"its point.json says that it is {said}")
    if len({disk.key for disk in document.disks}) != len(document.disks):
        raise ValueError("its point.json has a disk twice")
    for disk in document.disks:
        for name in (disk.layer_file, disk.ledger_file):
            if not _OF_A_DISK.fullmatch(name):
                raise ValueError(f"its point.json names a file {name!r}")


def _chains(repository: Repository, scan: MachineScan) -> Iterator[Finding]:
    """What is wrong with the disks of a VM's points, each with its own files and with what it is built on."""
    documents = {document.point_id: document for document in scan.points.values()}
    own: dict[tuple[str, int], str] = {}
    for where, document in scan.points.items():
        for disk in document.disks:
            if words := _own_trouble(repository.root / where, disk, documents):
                own[document.point_id, disk.key] = words
                words = f"disk {disk.key} ({disk.label}): {words}"
                yield Finding(FindingKind.DAMAGED, where, words, document.point_id)
    for where, document in scan.points.items():
        for disk in document.disks:
            if (document.point_id, disk.key) not in own and (words := _below(disk, documents, own)):
                words = f"disk {disk.key} ({disk.label}): {words}"
                yield Finding(FindingKind.CHAIN_BROKEN, where, words, document.point_id)


def _own_trouble(path: Path, disk: DiskDocument, documents: dict[str, PointDocument]) -> str:
    """What is wrong with a layer and its ledger; empty: nothing."""
    try:
        header = layer_header.read(path / disk.layer_file)
    except FileNotFoundError:
        return f"its layer {disk.layer_file} is missing"
    except (OSError, ValueError) as error:
        return f"its layer {disk.layer_file} cannot be used: {_words(error)}"
    parent = documents.get(disk.parent_point_id)
    below = (
        parent.disk(disk.key).layer_file if parent and _has(parent, disk.key) else Path(header.backing).name
    )
    backing = f"../{disk.parent_point_id}/{below}" if disk.parent_point_id else ""
    if header.backing != backing or header.capacity_bytes != disk.capacity_bytes:
        return (
            f"its layer {disk.layer_file} has {header.capacity_bytes} bytes on top of "
            f"{header.backing or 'nothing'!r}; it should have {disk.capacity_bytes} on top of "
            f"{backing or 'nothing'!r}"
        )
    try:
        same = (path / disk.ledger_file).stat().st_size == disk.ledger_bytes
        same = same and ledger.file_sha256(path / disk.ledger_file) == disk.ledger_sha256
    except FileNotFoundError:
        return f"its ledger {disk.ledger_file} is missing"
    except OSError as error:
        return f"its ledger {disk.ledger_file} cannot be read: {_words(error)}"
    return "" if same else f"its ledger {disk.ledger_file} is not the one that was committed"


def _below(disk: DiskDocument, documents: dict[str, PointDocument], own: dict[tuple[str, int], str]) -> str:
    """What is wrong with the points that a disk is built on; empty: nothing."""
    seen = set()
    while parent := disk.parent_point_id:
        if parent in seen:
            return "its chain runs in a circle"
        seen.add(parent)
        document = documents.get(parent)
        if document is None or not _has(document, disk.key):
            return f"it is built on point {parent}, which is not there"
        if (parent, disk.key) in own:
            return f"it is built on point {parent}, which is damaged"
        if document.disk(disk.key).capacity_bytes != disk.capacity_bytes:
            return f"it is built on point {parent}, whose disk has another size"
        disk = document.disk(disk.key)
    return ""


def _has(document: PointDocument, key: int) -> bool:
    return any(disk.key == key for disk in document.disks)


def _entries(path: Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return bool(ID.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False)


def _foreign(path: str) -> Finding:
    return Finding(FindingKind.FOREIGN, path, "Sendense makes nothing of that name there")


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
