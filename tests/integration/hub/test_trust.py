# SPDX-License-Identifier: Apache-2.0
"""Audits at the hub: what the agent is given to compare, what a mismatch does, and how trust comes back."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.hub.kit import Api, Hub, api_of, hub_of, world
from tests.integration.hub.scripted_agent import (
    CAPACITY,
    MACHINE,
    MACHINE_NAME,
    MIB,
    VCENTER_UUID,
    Script,
    ScriptedJob,
    backup,
    incremental,
    plan_of,
    planned,
)
from tests.integration.repository.kit import noise, patch

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as job_pb
from sendense.hub.v1 import trust_service_pb2 as pb
from sendense.hub.v1.trust_service_pb2_grpc import TrustServiceStub
from sendense_common.errors import SendenseError
from sendense_hub.catalog import points, trust
from sendense_hub.domain.resuming import Patience
from sendense_hub.repository import AuditPolicy, committed_ledgers, ledger
from sendense_hub.repository.ledger import RECORD

pytestmark = pytest.mark.integration

FIRST = {2000: {0: noise(1, 2 * MIB), CAPACITY - 512: noise(2, 512)}}
KNOWN = trust.Machine(VCENTER_UUID, MACHINE)


@pytest.fixture
async def hub(short_tmp: Path) -> AsyncIterator[Hub]:
    async with world(short_tmp) as around, hub_of(around, audit=AuditPolicy(100.0)) as made:
        yield made


@pytest.fixture
async def api(short_tmp: Path) -> AsyncIterator[Api]:
    async with world(short_tmp) as around, api_of(around, "--cbt-audit-percent", "100") as made:
        await made.register()
        yield made


def audited(*mismatches: tuple[int, int], size: int = 3 * MIB) -> Script:
    """An incremental whose audit found this."""

    async def script(job: ScriptedJob) -> None:
        exports = await job.snapshot_and_plan(plan_of(incremental()))
        await job.phase(agent.AGENT_PHASE_COPY)
        if mismatches:
            extents = [number for pair in mismatches for number in pair]
            await job.say(audit_mismatch=agent.AuditMismatch(disk_key=2000, extents_bytes=extents))
        progress = agent.DiskProgress(
            disk_key=2000, read_bytes=MIB, audited_bytes=size, audit_mismatches=len(mismatches)
        )
        await job.say(progress=agent.BackupProgress(disks=[progress]))
        assert len(exports) == 1
        await job.say(disk_done=agent.DiskDone(progress=progress))
        await job.finish()

    return script


def compared(change_id: str = "52 aa/9", *, whole: bool = True) -> Script:
    disk = planned(
        2000,
        mode=agent.DISK_MODE_COMPARED,
        mode_reason="cbt_not_trusted",
        whole=whole,
        change_id=change_id,
        planned_read_bytes=MIB,
    )
    return backup({}, plan_of(disk))


async def happened(hub: Hub) -> list[str]:
    events = await hub.catalog.run(lambda connection: trust.events(connection, KNOWN))
    return [each.kind for each in events]


async def test_rule_27_an_incremental_is_told_what_its_previous_point_holds_before_it_copies(hub: Hub):
    hub.agent.script = backup(FIRST)
    assert (await hub.run()).state == job_pb.JOB_STATE_SUCCEEDED
    assert hub.agent.job.count("audit") == 0
    hub.agent.script = audited()
    job = await hub.run()
    assert job.state == job_pb.JOB_STATE_SUCCEEDED, job.failure
    kinds = [each.WhichOneof("message") for each in hub.agent.job.heard]
    assert kinds.index("audit") < kinds.index("exports")
    told = await hub.agent.job.hear("audit")
    assert told.disk_key == 2000
    image, end = patch(bytearray(CAPACITY), FIRST[2000]), 0
    for offset, length, kind, digest in RECORD.iter_unpack(told.records):
        assert offset == end
        end += length
        assert digest == (hashlib.sha256(image[offset:end]).digest() if kind else bytes(32))
    assert end == CAPACITY
    assert (job.disks[0].audited_bytes, job.disks[0].audit_mismatches) == (3 * MIB, 0)
    assert job.disks[0].read_bytes == MIB
    assert await happened(hub) == []
    assert list(hub.agent.starts[-1].untrusted_disk_keys) == []


async def test_rule_27_nothing_is_sampled_when_the_audit_is_off(short_tmp: Path):
    async with world(short_tmp) as around, hub_of(around, audit=AuditPolicy(0.0)) as hub:
        hub.agent.script = backup(FIRST)
        await hub.run()
        hub.agent.script = audited()
        assert (await hub.run()).state == job_pb.JOB_STATE_SUCCEEDED
        assert hub.agent.job.count("audit") == 0


async def test_rule_27_an_attempt_that_goes_on_is_given_the_sample_of_the_one_before(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
):
    """Of which it may have written a mismatch, and not told it any more."""
    samples = []

    async def script(job: ScriptedJob) -> None:
        (disk,) = plan_of(incremental()).disks
        disk.keeps_layer = job.start.HasField("resume")
        await job.snapshot_and_plan(plan_of(disk))
        samples.append([each.audit for each in job.heard if each.WhichOneof("message") == "audit"])
        if job.start.attempt == 1:
            failure = Failure(reason=Reason.REASON_TUNNEL_LOST, message="cut")
            await job.say(interrupted=agent.BackupInterrupted(failure=failure))
            await asyncio.Event().wait()
        progress = agent.DiskProgress(disk_key=2000, read_bytes=MIB)
        await job.say(disk_done=agent.DiskDone(progress=progress))
        await job.finish()

    caplog.set_level(logging.INFO, "sendense_hub.jobs.auditing")
    audit = AuditPolicy(50.0)
    async with world(short_tmp) as around, hub_of(around, audit=audit, patience=Patience(tries=3)) as hub:
        hub.agent.script = backup(FIRST)
        await hub.run()
        hub.agent.script = script
        for _ in range(2):
            job = await hub.run()
            assert job.state == job_pb.JOB_STATE_WAITING
            await hub.runner.run(job.job_id)
            ended = await hub.job(job.job_id)
            assert ended.state == job_pb.JOB_STATE_SUCCEEDED, ended.failure
    first, again, other, other_again = samples
    assert first == again != []
    assert other == other_again != []
    # Of a disk this small two jobs may draw the same; their seeds tell them apart.
    seeds = [said.rpartition(" seed ")[2] for said in caplog.messages if "audit of disk" in said]
    assert seeds == [seeds[0], seeds[0], seeds[2], seeds[2]]
    assert seeds[0] != seeds[2], "each backup looks at something else"


async def test_rule_27_a_mismatch_ends_the_trust_even_when_the_job_fails(hub: Hub):
    hub.agent.script = backup(FIRST)
    await hub.run()

    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of(incremental()))
        await job.say(
            audit_mismatch=agent.AuditMismatch(disk_key=2000, extents_bytes=[MIB, 512, 2 * MIB, 65536])
        )
        await job.fail(Reason.REASON_SNAPSHOT_LOST)

    hub.agent.script = script
    job = await hub.run()
    assert job.state == job_pb.JOB_STATE_FAILED
    (warning,) = [each for each in job.warnings if each.code == "cbt_mismatch"]
    assert warning.disk_key == 2000
    assert f"byte {MIB} (512 bytes), {2 * MIB} (65536 bytes)" in warning.message
    assert "Hard disk 2000" in warning.message
    assert await happened(hub) == ["mismatch"]
    hub.agent.script = compared()
    assert (await hub.run()).state == job_pb.JOB_STATE_SUCCEEDED
    assert list(hub.agent.starts[-1].untrusted_disk_keys) == [2000]


@pytest.mark.parametrize("script", [audited(), compared(whole=False)], ids=["incremental", "in part"])
async def test_rule_27_a_plan_that_believes_what_is_not_trusted_is_refused(hub: Hub, script: Script):
    hub.agent.script = backup(FIRST)
    await hub.run()
    hub.agent.script = audited((MIB, 512))
    await hub.run()
    hub.agent.script = script
    job = await hub.run()
    assert job.failure.reason == Reason.REASON_DISK_MISMATCH
    assert "not trusted" in job.failure.message


async def test_rule_27_trust_returns_when_all_was_read_after_tracking_began_anew_and_not_before(hub: Hub):
    hub.agent.script = backup(FIRST)
    await hub.run()
    hub.agent.script = audited((MIB, 512))
    await hub.run()
    hub.agent.script = compared("52 aa/9")
    job = await hub.run()
    assert job.state == job_pb.JOB_STATE_SUCCEEDED, job.failure
    assert await happened(hub) == ["mismatch", "read_whole"]
    hub.agent.script = compared("")  # no tracking at all is no new one
    await hub.run()
    hub.agent.script = compared("77 bb/1")
    await hub.run()
    assert list(hub.agent.starts[-1].untrusted_disk_keys) == [2000]
    assert (await happened(hub))[-2:] == ["read_whole", "tracking_reset"]
    hub.agent.script = audited()
    await hub.run()
    assert list(hub.agent.starts[-1].untrusted_disk_keys) == []


async def test_a_mismatch_of_a_disk_that_is_not_in_the_plan_is_a_defect_of_the_agent(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of())
        await job.say(audit_mismatch=agent.AuditMismatch(disk_key=2077, extents_bytes=[0, 512]))

    hub.agent.script = script
    job = await hub.run()
    assert job.failure.reason == Reason.REASON_INTERNAL
    assert await happened(hub) == []


async def test_a_sample_that_cannot_be_drawn_is_a_warning_and_the_backup_goes_on(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    async def broken(*arguments: object) -> bytes:
        raise SendenseError(Reason.REASON_EXPORT_FAILED, "no view")

    hub.agent.script = backup(FIRST)
    await hub.run()
    monkeypatch.setattr("sendense_hub.jobs.auditing.sample", broken)
    hub.agent.script = audited()
    job = await hub.run()
    assert job.state == job_pb.JOB_STATE_SUCCEEDED
    assert [each.code for each in job.warnings] == ["cbt_audit_skipped"]


async def test_in_another_repository_all_is_read_once_more_though_trust_is_back(hub: Hub):
    for kind, repository in [("mismatch", ""), ("read_whole", "default"), ("accepted", "")]:
        event = trust.Event(kind, 2000, repository_name=repository)
        await hub.catalog.run(lambda connection, event=event: trust.add(connection, KNOWN, event))  # type: ignore[misc]
    events = await hub.catalog.run(lambda connection: trust.events(connection, KNOWN))
    assert trust.mistrusted(events) == {}
    newest = {2000: events[1].time_us}
    assert trust.to_read_whole(events, "default", newest) == set()
    assert trust.to_read_whole(events, "elsewhere", newest) == {2000}


async def test_rule_27_without_the_point_that_was_read_whole_all_is_read_once_more(hub: Hub):
    hub.agent.script = backup(FIRST)
    await hub.run()
    hub.agent.script = audited((MIB, 512))
    await hub.run()
    hub.agent.script = compared("52 aa/9")
    whole = await hub.run()
    assert whole.state == job_pb.JOB_STATE_SUCCEEDED, whole.failure
    accepted = trust.Event(trust.ACCEPTED, 2000)
    await hub.catalog.run(lambda connection: trust.add(connection, KNOWN, accepted))
    await hub.catalog.run(lambda connection: points.forget(connection, whole.point_id))
    hub.agent.script = compared("52 aa/10")
    await hub.run()
    assert list(hub.agent.starts[-1].untrusted_disk_keys) == [2000]
    hub.agent.script = audited()
    await hub.run()
    assert list(hub.agent.starts[-1].untrusted_disk_keys) == []


# --- TrustService ---


async def back_up(api: Api, script: Script) -> job_pb.Job:
    api.world.agent.script = script
    job = await api.ended((await api.start_backup()).job_id)
    assert job.state == job_pb.JOB_STATE_SUCCEEDED, job.failure
    return job


async def refused(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> SendenseError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return SendenseError.from_rpc(caught.value, doing="asking")


async def test_an_operator_sees_audits_and_events_and_accepts_only_after_all_was_read(api: Api):
    service = TrustServiceStub(api.channel)
    await back_up(api, backup(FIRST))
    answer = (await service.GetTrust(pb.GetTrustRequest(vm=MACHINE_NAME))).trust
    assert (answer.vm_name, answer.vm_instance_uuid) == (MACHINE_NAME, MACHINE)
    assert [(each.key, each.label, each.trusted) for each in answer.disks] == [(2000, "Hard disk 2000", True)]
    assert not answer.disks[0].HasField("since_time")
    job = await back_up(api, audited((MIB, 512), size=2 * MIB))
    answer = (await service.GetTrust(pb.GetTrustRequest(vm=MACHINE_NAME))).trust
    (disk,) = answer.disks
    assert (disk.trusted, disk.audited_bytes, disk.audit_mismatches) == (False, 2 * MIB, 1)
    assert disk.since_time.seconds > 0
    assert [(each.kind, each.job_id, each.disk_key) for each in answer.events] == [
        ("mismatch", job.job_id, 2000)
    ]
    assert [(each.job_id, each.audited_bytes, each.mismatches) for each in answer.audits] == [
        (job.job_id, 2 * MIB, 1)
    ]

    error = await refused(service.AcceptTracking(pb.AcceptTrackingRequest(vm=MACHINE_NAME)))
    assert error.reason == Reason.REASON_NOT_READ_WHOLE
    await back_up(api, compared())
    answer = (await service.AcceptTracking(pb.AcceptTrackingRequest(vm=MACHINE_NAME))).trust
    assert [each.trusted for each in answer.disks] == [True]
    assert [each.kind for each in answer.events] == ["accepted", "read_whole", "mismatch"]
    again = (await service.AcceptTracking(pb.AcceptTrackingRequest(vm=MACHINE_NAME))).trust
    assert again == answer
    await back_up(api, audited())
    assert list(api.world.agent.starts[-1].untrusted_disk_keys) == []


async def test_a_reset_is_passed_on_noted_and_refused_while_a_job_runs(api: Api):
    service = TrustServiceStub(api.channel)
    await back_up(api, backup(FIRST))
    answer = (await service.ResetTracking(pb.ResetTrackingRequest(vm=MACHINE_NAME))).trust
    (asked,) = api.world.agent.resets
    assert (asked.vm_instance_uuid, asked.vm_name) == (MACHINE, MACHINE_NAME)
    assert asked.reset_id
    assert [each.kind for each in answer.events] == ["reset_ordered"]

    async def waiting(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of(incremental()))

    api.world.agent.script = waiting
    running = await api.start_backup()
    error = await refused(service.ResetTracking(pb.ResetTrackingRequest(vm=MACHINE_NAME)))
    assert (error.reason, error.metadata["job"]) == (Reason.REASON_VM_BUSY, running.job_id)
    assert len(api.world.agent.resets) == 1


async def test_a_reset_that_broke_off_leaves_its_snapshot_to_the_clean_up(api: Api):
    service = TrustServiceStub(api.channel)
    await back_up(api, backup(FIRST))
    api.world.agent.refusal = SendenseError(Reason.REASON_VSPHERE_FAULT, "no")
    error = await refused(service.ResetTracking(pb.ResetTrackingRequest(vm=MACHINE_NAME)))
    assert error.reason == Reason.REASON_VSPHERE_FAULT
    api.world.agent.refusal = None
    (asked,) = api.world.agent.resets
    await back_up(api, audited())
    assert [each.job_id for each in api.world.agent.starts[-1].dead_snapshots] == [asked.reset_id]


async def test_a_reset_that_was_refused_leaves_nothing_to_clean_up(api: Api):
    service = TrustServiceStub(api.channel)
    await back_up(api, backup(FIRST))
    api.world.agent.refusal = SendenseError(Reason.REASON_RESET_REFUSED, "it has snapshots")
    error = await refused(service.ResetTracking(pb.ResetTrackingRequest(vm=MACHINE_NAME)))
    assert error.reason == Reason.REASON_RESET_REFUSED
    api.world.agent.refusal = None
    await back_up(api, audited())
    assert list(api.world.agent.starts[-1].dead_snapshots) == []


# --- ledgers ---


async def test_a_damaged_ledger_means_a_full_and_no_backup_that_fails_for_ever(hub: Hub):
    hub.agent.script = backup(FIRST)
    await hub.run()
    hub.agent.script = audited()
    await hub.run()
    assert [disk.key for disk in hub.agent.starts[-1].previous_disks] == [2000]
    (file,) = hub.repository.root.glob(f"*/*/{(await hub.points())[-1].point_id}/*.ledger")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    hub.agent.script = backup(FIRST)
    job = await hub.run()
    assert job.state == job_pb.JOB_STATE_SUCCEEDED, job.failure
    assert list(hub.agent.starts[-1].previous_disks) == []
    (warning,) = job.warnings
    assert (warning.code, warning.disk_key) == ("chain_unusable", 2000)
    assert "not the one that was committed" in warning.message


async def test_ff30_a_ledger_that_looks_as_before_is_not_read_again_until_it_was_found_damaged(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    read: list[Path] = []

    def noting(path: Path) -> str:
        read.append(path)
        return ledger.file_sha256(path)

    monkeypatch.setattr(committed_ledgers, "file_sha256", noting)
    hub.agent.script = backup(FIRST)
    await hub.run()
    hub.agent.script = audited()
    await hub.run()
    first_round = len(read)
    await hub.run()
    assert (first_round, len(read)) == (1, 2)
    (newest, *_) = await hub.points()
    document = hub.repository.read_document(newest.directory)
    path = hub.repository.point_path(newest.directory) / document.disk(2000).ledger_file
    committed_ledgers.check_ledgers(hub.repository, [document], 2000)
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"x")  # and back again, so that it looks the same in the end
    with pytest.raises(SendenseError):
        committed_ledgers.check_ledgers(hub.repository, [document], 2000)
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    count = len(read)
    committed_ledgers.check_ledgers(hub.repository, [document], 2000)
    assert len(read) == count + 1
