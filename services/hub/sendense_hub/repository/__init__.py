# SPDX-License-Identifier: Apache-2.0
"""The repository: restore points as files that stock QEMU tools open. Knows nothing of catalog or jobs."""

from sendense_hub.repository.audit import AuditPolicy, sample
from sendense_hub.repository.deletion import delete_point
from sendense_hub.repository.disk_export import export_disk
from sendense_hub.repository.document import DiskDocument, PointDocument
from sendense_hub.repository.export import Export
from sendense_hub.repository.layout import LayerRef, Repository, Space, open_repository
from sendense_hub.repository.ledger import LedgerWriter, Record
from sendense_hub.repository.owner import Owner
from sendense_hub.repository.part_files import PartFiles
from sendense_hub.repository.point_writer import PointWriter
from sendense_hub.repository.verification import VerifyProgress, verify_point

__all__ = [
    "AuditPolicy",
    "DiskDocument",
    "Export",
    "LayerRef",
    "LedgerWriter",
    "Owner",
    "PartFiles",
    "PointDocument",
    "PointWriter",
    "Record",
    "Repository",
    "Space",
    "VerifyProgress",
    "delete_point",
    "export_disk",
    "open_repository",
    "sample",
    "verify_point",
]
