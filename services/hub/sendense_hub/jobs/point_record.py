# SPDX-License-Identifier: Apache-2.0
"""A restore point in its two shapes: the document in the repository, the message in the catalog."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2, point_service_pb2
from sendense_common.errors import SendenseError
from sendense_hub.domain.times import now_us, to_timestamp
from sendense_hub.repository import DiskDocument, LayerRef, PointDocument

_MODES = {
    agent.DISK_MODE_FULL: "full",
    agent.DISK_MODE_INCREMENTAL: "incremental",
    agent.DISK_MODE_COMPARED: "compared",
}
_BLOCK_BYTES = 512


def mode_name(mode: agent.DiskMode.ValueType) -> str:
    """What documents and jobs call it: "full", "incremental", "compared"; empty for an unknown mode."""
    return _MODES.get(mode, "")


def document(
    job: job_pb2.Job,
    plan: agent.BackupPlan,
    *,
    point_id: str,
    hub_id: str,
    snapshot_time_us: int,
    layers: Mapping[int, LayerRef],
    parents: Mapping[int, str],
    newest_us: int,
) -> PointDocument:
    """What the point's directory says about it.

    Args:
        job: as it is now: its disks have what was copied.
        plan: of the agent.
        point_id: of the point.
        hub_id: of this hub.
        snapshot_time_us: when the snapshot was made, by vCenter's clock.
        layers: by disk key.
        parents: ID of the point each layer is built on, by disk key; none for fulls.
        newest_us: when the VM's newest point was complete. This one is newer, wherever the clock was set
            since: else the next backup, and whoever restores the newest, would take an older one.
    """
    counted = {disk.key: disk for disk in job.disks}
    disks = tuple(
        DiskDocument(
            key=disk.key,
            label=disk.label,
            capacity_bytes=disk.capacity_bytes,
            disk_object_id=disk.disk_object_id,
            backing_uuid=disk.backing_uuid,
            change_id=disk.change_id,
            mode=mode_name(disk.mode),
            mode_reason=counted[disk.key].mode_reason,
            layer_file=layers[disk.key].file,
            ledger_file=Path(layers[disk.key].file).with_suffix(".ledger").name,
            ledger_bytes=0,
            ledger_sha256="",
            copied_bytes=counted[disk.key].copied_bytes,
            parent_point_id=parents.get(disk.key, ""),
        )
        for disk in plan.disks
    )
    return PointDocument(
        point_id=point_id,
        job_id=job.job_id,
        hub_id=hub_id,
        vcenter_name=job.vcenter_name,
        vcenter_uuid=plan.vcenter_uuid,
        vm_name=plan.vm_name,
        vm_instance_uuid=plan.vm_instance_uuid,
        snapshot_time_us=snapshot_time_us,
        complete_time_us=max(now_us(), newest_us + 1),
        quiesce_result=plan.quiesce_result,
        disks=disks,
        unprotected_disks=unprotected(plan.skipped_disks),
        vm_config=json.loads(plan.vm_config_json) if plan.vm_config_json else None,
        nvram=plan.nvram,
    )


def unprotected(skipped: Sequence[agent.SkippedDisk]) -> tuple[str, ...]:
    """As "Hard disk 2: independent"."""
    return tuple(f"{disk.label}: {disk.reason}" for disk in skipped)


def message(
    document: PointDocument,
    repository_name: str,
    directory: str,
    path: Path,
    *,
    missing_is_empty: bool = False,
) -> point_service_pb2.RestorePoint:
    """What the catalog keeps of a document. Blocks: looks at the sizes of the layers below `path`.

    Args:
        document: of the point.
        repository_name: where it is.
        directory: of the point, relative to the repository.
        path: the same, absolute.
        missing_is_empty: a layer that is missing takes no space.

    Raises:
        SendenseError: POINT_CORRUPT when a layer is missing otherwise.
    """
    return point_service_pb2.RestorePoint(
        point_id=document.point_id,
        vcenter_name=document.vcenter_name,
        vm_name=document.vm_name,
        vm_instance_uuid=document.vm_instance_uuid,
        vcenter_uuid=document.vcenter_uuid,
        snapshot_time=to_timestamp(document.snapshot_time_us),
        complete_time=to_timestamp(document.complete_time_us),
        quiesce_result=document.quiesce_result,
        job_id=document.job_id,
        repository_name=repository_name,
        directory=directory,
        unprotected_disks=document.unprotected_disks,
        disks=[
            point_service_pb2.PointDisk(
                key=disk.key,
                label=disk.label,
                capacity_bytes=disk.capacity_bytes,
                mode=disk.mode,
                mode_reason=disk.mode_reason,
                layer_file=disk.layer_file,
                parent_point_id=disk.parent_point_id,
                stored_bytes=_stored_bytes(
                    path / disk.layer_file, document.point_id, missing_is_empty=missing_is_empty
                ),
                copied_bytes=disk.copied_bytes,
                change_id=disk.change_id,
                disk_object_id=disk.disk_object_id,
                backing_uuid=disk.backing_uuid,
            )
            for disk in document.disks
        ],
    )


def _stored_bytes(layer: Path, point_id: str, *, missing_is_empty: bool) -> int:
    try:
        return layer.stat().st_blocks * _BLOCK_BYTES
    except OSError as error:
        if missing_is_empty:
            return 0
        raise SendenseError(
            Reason.REASON_POINT_CORRUPT,
            f"the layer {layer} of point {point_id} cannot be looked at: {error.strerror}",
            point=point_id,
        ) from error
