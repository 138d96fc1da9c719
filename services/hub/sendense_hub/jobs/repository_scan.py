# SPDX-License-Identifier: Apache-2.0
"""Putting what a repository holds into the catalog: a catalog that was lost is made whole again.

Adds rows, and gives rows the name that their vCenter or repository has now. Never removes a row, never
touches a file, and leaves alone what a job writes or somebody deletes at this moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable

import sqlalchemy as sa

from sendense.hub.v1 import point_service_pb2 as points_pb
from sendense.hub.v1 import repository_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import points, repositories, vcenters
from sendense_hub.domain import vcenter_names
from sendense_hub.jobs import point_record
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import PointDocument, Repository, scan
from sendense_hub.repository.scan import Finding, FindingKind, MachineScan

log = logging.getLogger(__name__)

_KINDS = {
    FindingKind.HALF_POINT: pb.SCAN_FINDING_KIND_HALF_POINT,
    FindingKind.HALF_DELETED: pb.SCAN_FINDING_KIND_HALF_DELETED,
    FindingKind.FOREIGN: pb.SCAN_FINDING_KIND_FOREIGN,
    FindingKind.UNREADABLE: pb.SCAN_FINDING_KIND_UNREADABLE,
    FindingKind.DAMAGED: pb.SCAN_FINDING_KIND_DAMAGED,
    FindingKind.CHAIN_BROKEN: pb.SCAN_FINDING_KIND_CHAIN_BROKEN,
}
_FULL = "`sendense backup start VM --mode full`"
_ANEW = f"Bring it back from a copy of the repository; else make a full: {_FULL}."
_REMEDIES = {
    FindingKind.HALF_POINT: "If no hub writes it, its directory can be removed: it cannot be restored.",
    FindingKind.HALF_DELETED: "If no hub deletes it, its directory can be removed: it was to go.",
    FindingKind.FOREIGN: "Keep it elsewhere.",
    FindingKind.UNREADABLE: "Bring its point.json back from a copy of the repository, then scan again.",
    FindingKind.DAMAGED: _ANEW,
    FindingKind.CHAIN_BROKEN: _ANEW,
}
_OF_POINTS = ("vcenter_uuid", "vm_instance_uuid", "directory", "snapshot_time", "complete_time")
_OF_DISKS = (
    "capacity_bytes",
    "layer_file",
    "parent_point_id",
    "change_id",
    "disk_object_id",
    "backing_uuid",
)


class RepositoryScan:
    """One scan of one repository."""

    def __init__(self, workshop: Workshop, repository: Repository) -> None:
        self._workshop = workshop
        self._repository = repository
        self._known: dict[str, str] = {}
        self._summary = pb.ScanSummary()
        self._seen: set[str] = set()
        self._names: dict[str, set[str]] = defaultdict(set)
        self._listed_as: dict[str, set[str]] = defaultdict(set)
        self._counts: dict[str, int] = defaultdict(int)
        self._hubs: set[str] = set()

    async def run(self) -> AsyncIterator[pb.ScanRepositoryResponse]:
        """What it finds, VM by VM; each VM's points are in the catalog when it has been told.

        Raises:
            SendenseError: REPOSITORY_UNAVAILABLE, also when it goes away meanwhile.
        """
        await asyncio.to_thread(self._repository.space)
        self._known = {
            each.name: each.instance_uuid for each in await self._workshop.catalog.run(vcenters.listed)
        }
        directories, above = await asyncio.to_thread(scan.machines, self._repository)
        yield self._report(0, len(directories), _told(above))
        for number, directory in enumerate(directories, 1):
            found = await asyncio.to_thread(scan.machine, self._repository, directory)
            findings = await self._keep(found)
            yield self._report(number, len(directories), findings)
        await asyncio.to_thread(self._repository.space)  # one that went away has not lost its points
        last = [*await self._missing(), *self._unknown_vcenters()]
        report = self._report(len(directories), len(directories), last)
        report.done = True
        report.summary.CopyFrom(self._summed_up())
        yield report

    async def _keep(self, found: MachineScan) -> list[pb.ScanFinding]:
        """Takes the points of one VM into the catalog; what is to be told of it."""
        ids = {document.point_id for document in found.points.values()}
        ids |= {finding.point_id for finding in found.findings if finding.point_id}
        going: set[str] = set()
        with contextlib.ExitStack() as stack:
            for point_id in sorted(ids):
                try:
                    stack.enter_context(self._workshop.locks.reading([point_id]))
                except SendenseError:
                    # It is being deleted. Its mark may still be there, and its row be gone when rows are read
                    # below: taken for one that the catalog has lost, the point would come back.
                    going.add(point_id)
            here = await asyncio.to_thread(self._still_here, found, going)
            taken, busy = await self._workshop.catalog.run(
                lambda connection: self._write(connection, here, ids)
            )
        busy |= going
        self._summary.busy_count += len(busy)
        findings = [each for each in found.findings if each.point_id not in busy]
        return [*_told(findings), *taken]

    def _still_here(self, found: MachineScan, going: set[str]) -> dict[str, points_pb.RestorePoint]:
        """Rows of the points whose commit mark is there now, while nobody can delete them. Blocks.

        Args:
            found: on disk.
            going: IDs of those that are being deleted.
        """
        made = {}
        for directory, document in found.points.items():
            if document.point_id not in going and self._repository.has_mark(directory):
                path = self._repository.point_path(directory)
                row = point_record.message(
                    document, self._repository.name, directory, path, missing_is_empty=True
                )
                row.vcenter_name = vcenter_names.name_here(
                    document.vcenter_uuid, document.vcenter_name, self._known
                )
                made[directory] = row
                self._count(directory, document, row)
        return made

    def _count(self, directory: str, document: PointDocument, row: points_pb.RestorePoint) -> None:
        self._seen.add(directory)
        self._hubs.add(document.hub_id)
        self._names[document.vcenter_uuid].add(document.vcenter_name)
        self._listed_as[document.vcenter_uuid].add(row.vcenter_name)
        self._counts[document.vcenter_uuid] += 1

    def _write(
        self, connection: sa.Connection, here: dict[str, points_pb.RestorePoint], ids: set[str]
    ) -> tuple[list[pb.ScanFinding], set[str]]:
        """One transaction for one VM: findings, and the points that somebody works on."""
        findings: list[pb.ScanFinding] = []
        known = points.with_ids(connection, ids)
        busy = {each.point_id for each in known.values() if each.state != points_pb.POINT_STATE_COMPLETE}
        for directory, row in here.items():
            before = known.get(row.point_id)
            if before is None:
                points.complete(connection, row)
                self._summary.added_count += 1
            elif before.point_id not in busy:
                findings += self._compare(connection, directory, before, row)
        self._summary.points_count += sum(row.point_id not in busy for row in here.values())
        return findings, busy

    def _compare(
        self,
        connection: sa.Connection,
        directory: str,
        before: points_pb.RestorePoint,
        row: points_pb.RestorePoint,
    ) -> Iterable[pb.ScanFinding]:
        """A point that the catalog knows already."""
        if before.repository_name != row.repository_name and not self._moved(connection, before):
            yield pb.ScanFinding(
                kind=pb.SCAN_FINDING_KIND_ELSEWHERE,
                path=directory,
                point_id=row.point_id,
                finding=f"the catalog has it in the repository {before.repository_name}",
                remedy="Is one of them a copy of the other? Give the hub only one of them.",
            )
            return
        if different := _different(before, row):
            yield pb.ScanFinding(
                kind=pb.SCAN_FINDING_KIND_DIFFERENT,
                path=directory,
                point_id=row.point_id,
                finding=f"the catalog and its point.json disagree about {', '.join(different)}",
                remedy=f"Somebody changed one of them. Make a full: {_FULL}.",
            )
        if (before.vcenter_name, before.repository_name) != (row.vcenter_name, row.repository_name):
            points.rename_place(
                connection,
                row.point_id,
                vcenter_name=row.vcenter_name,
                repository_name=row.repository_name,
            )
            self._summary.renamed_count += 1

    def _moved(self, connection: sa.Connection, before: points_pb.RestorePoint) -> bool:
        """Whether the repository that the catalog names is this one, and nothing has that name any more."""
        return before.repository_name not in self._workshop.repositories and (
            repositories.identity(connection, before.repository_name) == self._repository.repository_id
        )

    async def _missing(self) -> list[pb.ScanFinding]:
        """Complete points of the catalog that are not here."""
        name = self._repository.name
        rows = await self._workshop.catalog.run(lambda connection: points.directories(connection, name))
        gone = {point_id: place for point_id, place in rows.items() if place not in self._seen}
        gone = await asyncio.to_thread(
            lambda: {each: place for each, place in gone.items() if not self._repository.has_mark(place)}
        )
        # Deleted meanwhile, in the right order: files, then the row.
        still = await self._workshop.catalog.run(lambda connection: points.with_ids(connection, gone))
        return [
            pb.ScanFinding(
                kind=pb.SCAN_FINDING_KIND_MISSING,
                path=place,
                point_id=point_id,
                finding="the catalog has it as complete, and the repository has not",
                remedy="Bring it back from a copy of the repository; or forget it: "
                f"`sendense point delete {point_id[:8]}`.",
            )
            for point_id, place in gone.items()
            if point_id in still and still[point_id].state == points_pb.POINT_STATE_COMPLETE
        ]

    def _unknown_vcenters(self) -> Iterable[pb.ScanFinding]:
        """Whose points no backup will be built upon, as things are."""
        for uuid, names in sorted(self._listed_as.items()):
            for name in sorted(names):
                if vcenter_names.is_known(uuid, name, self._known):
                    continue
                what = f"{name} here is another vCenter" if name in self._known else "no vCenter here is it"
                yield pb.ScanFinding(
                    kind=pb.SCAN_FINDING_KIND_VCENTER_UNKNOWN,
                    path=uuid,
                    finding=f"points come from it, which was called {name}, and {what}",
                    remedy="They can be exported. To go on with incrementals: "
                    f"`sendense vcenter add {name} --address HOST --username USER "
                    "--password-file FILE --ca-file FILE`, "
                    f"`sendense vcenter test {name}`, and scan again.",
                )

    def _summed_up(self) -> pb.ScanSummary:
        for uuid, names in sorted(self._names.items()):
            listed_as = self._listed_as[uuid]
            self._summary.vcenters.add(
                vcenter_uuid=uuid,
                names_then=sorted(names),
                name=min(listed_as),
                known=all(vcenter_names.is_known(uuid, name, self._known) for name in listed_as),
                points_count=self._counts[uuid],
            )
        self._summary.hub_ids.extend(sorted(self._hubs))
        log.info(
            "repository %s was scanned: %d points, %d of them new in the catalog, %d findings",
            self._repository.name,
            self._summary.points_count,
            self._summary.added_count,
            self._summary.findings_count,
        )
        return self._summary

    def _report(
        self, looked_at: int, total: int, findings: list[pb.ScanFinding]
    ) -> pb.ScanRepositoryResponse:
        self._summary.findings_count += len(findings)
        return pb.ScanRepositoryResponse(looked_at_count=looked_at, total_count=total, findings=findings)


def _told(findings: Iterable[Finding]) -> list[pb.ScanFinding]:
    return [
        pb.ScanFinding(
            kind=_KINDS[each.kind],
            path=each.path,
            point_id=each.point_id,
            finding=each.words,
            remedy=_REMEDIES[each.kind],
        )
        for each in findings
    ]


def _different(before: points_pb.RestorePoint, row: points_pb.RestorePoint) -> list[str]:
    """What the catalog and a document disagree about, of what a backup or a restore goes by."""
    names = [name for name in _OF_POINTS if getattr(before, name) != getattr(row, name)]
    old, new = ({disk.key: disk for disk in point.disks} for point in (before, row))
    for key in sorted({*old, *new}):
        if key not in old or key not in new:
            names.append(f"disk {key}")
            continue
        names += [
            f"{name} of disk {key}"
            for name in _OF_DISKS
            if getattr(old[key], name) != getattr(new[key], name)
        ]
    return names
