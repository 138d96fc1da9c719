# SPDX-License-Identifier: Apache-2.0
"""Auditing what vSphere says about changed blocks: the sample, the end of trust, and its return."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Sequence

import sqlalchemy as sa

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import points, trust
from sendense_hub.jobs import job_changes
from sendense_hub.jobs.board import LiveJob
from sendense_hub.jobs.previous_points import Previous
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import LayerRef, sample
from sendense_hub.repository.ledger import RECORD

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 16_384 * RECORD.size
_SHOWN = 8


async def samples(
    workshop: Workshop, live: LiveJob, plan: agent.BackupPlan, previous: Previous
) -> AsyncIterator[agent.AuditSample]:
    """For the agent, before it copies: of each incremental disk.

    Each attempt of a job draws the same: a mismatch that an earlier one has written to the layer and could
    not tell of is found again, told, and written with a record in the ledger.

    A sample that cannot be drawn is a warning: the backup is none the worse for it.
    """
    if not workshop.audit.on:
        return
    repository = workshop.repository(live.job.repository_name)
    for disk in plan.disks:
        if disk.mode != agent.DISK_MODE_INCREMENTAL:
            continue
        point, before = previous[disk.key]
        layer = LayerRef(point.directory, disk.key, before.layer_file, before.capacity_bytes)
        seed = _seed(live.job.job_id, disk.key)
        socket = workshop.exports_dir / f"{live.job.job_id[:8]}-{disk.key}.a"
        with telemetry.span("draw audit sample", disk=disk.key, seed=seed) as span:
            try:
                records = await sample(repository, layer, workshop.audit, seed, socket)
            except SendenseError as error:
                log.warning("job %s: disk %d is not audited: %s", live.job.job_id, disk.key, error)
                await live.change(job_changes.warn("cbt_audit_skipped", error.message, disk.key))
                continue
            span.set_attribute("records", len(records) // RECORD.size)
        log.info(
            "job %s: audit of disk %d: %d records of point %s, seed %d",
            live.job.job_id,
            disk.key,
            len(records) // RECORD.size,
            point.point_id,
            seed,
        )
        for start in range(0, len(records), _MESSAGE_BYTES):
            yield agent.AuditSample(disk_key=disk.key, records=records[start : start + _MESSAGE_BYTES])


async def untrusted(workshop: Workshop, live: LiveJob, vcenter_uuid: str) -> list[int]:
    """Device keys of disks of which everything must be read."""
    machine = trust.Machine(vcenter_uuid, live.job.vm_instance_uuid)

    def read(connection: sa.Connection) -> set[int]:
        return _to_read_whole(connection, machine, live, trust.events(connection, machine))

    return sorted(await workshop.catalog.run(read))


async def end_trust(
    workshop: Workshop, live: LiveJob, plan: agent.BackupPlan | None, found: agent.AuditMismatch
) -> None:
    """The agent has found changes of which vSphere did not tell."""
    disks = {each.key: each for each in plan.disks} if plan is not None else {}
    disk = disks.get(found.disk_key)
    if plan is None or disk is None or not found.extents_bytes or len(found.extents_bytes) % 2:
        raise SendenseError(
            Reason.REASON_INTERNAL,
            f"the agent told of changes in disk {found.disk_key} that cannot be",
            disk=found.disk_key,
        )
    message = (
        f"{disk.label}: changed block tracking left out changes at {_places(found)}. They are in this point; "
        "others may be missing: the next backup reads everything"
    )
    log.error("job %s: VM %s: %s", live.job.job_id, live.job.vm_name, message)
    event = trust.Event(
        trust.MISMATCH,
        disk.key,
        message=message,
        job_id=live.job.job_id,
        change_id=disk.change_id,
    )
    await workshop.catalog.run(lambda connection: trust.add(connection, _machine(plan), event))
    await live.change(job_changes.warn("cbt_mismatch", message, disk.key))


async def note_read_whole(workshop: Workshop, live: LiveJob, plan: agent.BackupPlan) -> None:
    """A point is complete: of disks that were not trusted, everything was read for it.

    Those whose tracking has begun anew since the mismatch are trusted again.
    """
    machine = _machine(plan)

    def note(connection: sa.Connection) -> list[str]:
        happened = trust.events(connection, machine)
        whole = _to_read_whole(connection, machine, live, happened)
        point = points.of_job(connection, live.job.job_id)
        assert point is not None
        mistrusted = trust.mistrusted(happened)
        restored = []
        for disk in plan.disks:
            if disk.key not in whole or not disk.whole:
                continue
            trust.add(
                connection,
                machine,
                trust.Event(
                    trust.READ_WHOLE,
                    disk.key,
                    message=f"{disk.label}: everything was read",
                    job_id=live.job.job_id,
                    repository_name=live.job.repository_name,
                    time_us=point.complete_time.ToMicroseconds(),
                ),
            )
            mismatch = mistrusted.get(disk.key)
            if mismatch is not None and _began_anew(mismatch.change_id, disk.change_id):
                words = f"{disk.label}: tracking had begun anew, and everything was read since"
                event = trust.Event(trust.TRACKING_RESET, disk.key, message=words, job_id=live.job.job_id)
                trust.add(connection, machine, event)
                restored.append(words)
        return restored

    for words in await workshop.catalog.run(note):
        log.info("job %s: VM %s: %s", live.job.job_id, live.job.vm_name, words)


def _to_read_whole(
    connection: sa.Connection, machine: trust.Machine, live: LiveJob, happened: Sequence[trust.Event]
) -> set[int]:
    """Of which disks a job that builds on what was there before it reads everything."""
    job = live.job
    newest = trust.newest_us(
        connection,
        machine,
        vcenter_name=job.vcenter_name,
        repository_name=job.repository_name,
        but_of_job=job.job_id,
    )
    return trust.to_read_whole(happened, job.repository_name, newest)


def _seed(job_id: str, disk_key: int) -> int:
    """48 bits: job IDs are random, so each backup looks at something else."""
    return int.from_bytes(hashlib.sha256(f"{job_id}/{disk_key}".encode()).digest()[:6])


def _machine(plan: agent.BackupPlan) -> trust.Machine:
    return trust.Machine(plan.vcenter_uuid, plan.vm_instance_uuid)


def _began_anew(before: str, now: str) -> bool:
    """Whether two change IDs ("UUID/sequence") are of different trackings, as far as both are known."""
    return bool(now) and before.rpartition("/")[0] != now.rpartition("/")[0]


def _places(found: agent.AuditMismatch) -> str:
    """As "bytes 1048576 (65536 bytes), 4194304 (512 bytes) and 3 more"."""
    pairs = list(zip(found.extents_bytes[::2], found.extents_bytes[1::2], strict=True))
    shown = ", ".join(f"{offset} ({length} bytes)" for offset, length in pairs[:_SHOWN])
    more = f" and {len(pairs) - _SHOWN} more places" if len(pairs) > _SHOWN else ""
    return f"byte {shown}{more}"
