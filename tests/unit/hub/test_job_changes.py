# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.jobs import job_changes
from sendense_hub.jobs.board import Change, end

pytestmark = pytest.mark.unit

KEYS = [2000, 2001, 2002]
SKIPPED = 2002
COUNTERS = ("read_bytes", "copied_bytes", "zero_bytes", "wire_bytes")

counted = st.builds(
    agent.DiskProgress,
    disk_key=st.sampled_from([*KEYS, 4711]),
    **dict.fromkeys(COUNTERS, st.integers(0, 2**62)),
)
changes: st.SearchStrategy[Change] = st.one_of(
    st.sampled_from([job_changes.start, job_changes.begin_commit]),
    st.sampled_from(pb.JobPhase.values()).map(job_changes.enter),
    st.builds(
        job_changes.progress,
        st.lists(counted, max_size=3).map(lambda disks: agent.BackupProgress(disks=disks)),
        st.floats(0, 1e6),
    ),
    counted.map(
        lambda one: job_changes.disk_done(agent.DiskDone(progress=one, duration=Duration(seconds=5)))
    ),
    st.just(job_changes.has_point("p")),
    st.just(job_changes.warn("c", "m", 2000)),
)


def planned() -> pb.Job:
    job = pb.Job(state=pb.JOB_STATE_RUNNING, phase=pb.JOB_PHASE_SNAPSHOT)
    job_changes.plan(
        agent.BackupPlan(
            vm_name="web",
            quiesce_result="quiesced",
            disks=[agent.PlannedDisk(key=key, mode=agent.DISK_MODE_FULL) for key in KEYS if key != SKIPPED],
            skipped_disks=[agent.SkippedDisk(key=SKIPPED, reason="independent")],
        )
    )(job)
    return job


@given(st.lists(changes, max_size=20))
def test_phases_counters_and_disks_never_go_backwards(steps: list[Change]):
    job = planned()
    for step in steps:
        before = pb.Job()
        before.CopyFrom(job)
        step(job)
        assert (job.attempt, job.phase) >= (before.attempt, before.phase)
        assert len(job.warnings) >= len(before.warnings)
        assert len(job.disks) == len(KEYS)
        for old, new in zip(before.disks, job.disks, strict=True):
            assert new.key == old.key
            if job.attempt == before.attempt:
                assert new.state >= old.state
            else:
                assert new.state in {pb.DISK_STATE_PENDING, pb.DISK_STATE_SKIPPED}
            for name in COUNTERS:
                assert getattr(new, name) >= getattr(old, name)
            if old.state == pb.DISK_STATE_COPIED and job.attempt == before.attempt:
                assert new == old, "what was said of a finished disk stands"


@given(st.lists(changes, max_size=20))
def test_a_skipped_disk_stays_skipped(steps: list[Change]):
    job = planned()
    (was,) = (disk for disk in job.disks if disk.key == SKIPPED)
    before = pb.JobDisk()
    before.CopyFrom(was)
    for step in steps:
        step(job)
    assert [disk for disk in job.disks if disk.key == SKIPPED] == [before]


def test_a_plan_tells_why_each_disk_is_copied_or_not():
    job = planned()
    assert [(disk.key, disk.state, disk.mode, disk.mode_reason) for disk in job.disks] == [
        (2000, pb.DISK_STATE_PENDING, "full", ""),
        (2001, pb.DISK_STATE_PENDING, "full", ""),
        (2002, pb.DISK_STATE_SKIPPED, "", "independent"),
    ]
    assert (job.phase, job.vm_name, job.quiesce_result) == (pb.JOB_PHASE_LAYERS, "web", "quiesced")


def test_an_unknown_mode_can_be_shown():
    job = pb.Job()
    job_changes.plan(agent.BackupPlan(disks=[agent.PlannedDisk(key=1, mode=9)]))(job)  # type: ignore[arg-type]
    assert job.disks[0].mode == ""


def test_the_commit_of_a_cancelled_job_does_not_begin():
    job = pb.Job(state=pb.JOB_STATE_CANCELLING, phase=pb.JOB_PHASE_COPY)
    with pytest.raises(SendenseError) as cancelled:
        job_changes.begin_commit(job)
    assert cancelled.value.reason == Reason.REASON_CANCELLED
    assert job.phase == pb.JOB_PHASE_COPY


def test_a_cancelled_job_does_not_run_again_when_its_turn_comes():
    job = pb.Job(state=pb.JOB_STATE_CANCELLING)
    job_changes.start(job)
    assert job.state == pb.JOB_STATE_CANCELLING


def test_an_ended_job_keeps_where_it_ended():
    job = planned()
    end(job, pb.JOB_STATE_FAILED, SendenseError(Reason.REASON_SNAPSHOT_LOST, "gone"))
    assert (job.phase, job.ended_in_phase) == (pb.JOB_PHASE_DONE, pb.JOB_PHASE_LAYERS)
    assert job.failure.reason == Reason.REASON_SNAPSHOT_LOST
    assert job.HasField("end_time")
    end(job, pb.JOB_STATE_FAILED)
    assert job.ended_in_phase == pb.JOB_PHASE_LAYERS


def test_an_attempt_that_finds_all_of_a_disk_written_has_nothing_left_to_read():
    """The counters of an attempt whose hub was killed are older than its last checkpoint."""
    job = planned()
    (disk,) = [each for each in job.disks if each.key == KEYS[0]]
    disk.planned_read_bytes, disk.read_bytes = 100, 40
    earlier = job_changes.copies(job.disks)
    told = agent.BackupProgress(disks=[agent.DiskProgress(disk_key=disk.key, to_read_bytes=0)])
    job_changes.progress(told, 1.0, earlier)(job)
    assert (disk.read_bytes, disk.planned_read_bytes) == (40, 40)


def test_an_agents_warnings_have_an_end_and_the_hubs_own_come_on_top():
    job = planned()
    for number in range(1000):
        job_changes.warn_of(agent.Warning(code=f"c{number}", message="m", disk_key=2000))(job)
    assert [each.code for each in job.warnings] == [f"c{number}" for number in range(200)] + [
        "warnings_left_out"
    ]
    job_changes.warn("snapshot_left", "m")(job)
    job_changes.warn_of(agent.Warning(code="late", message="m"))(job)
    assert [each.code for each in job.warnings][200:] == ["warnings_left_out", "snapshot_left"]


@given(st.text(), st.text())
def test_a_short_warning_is_kept_as_it_is(code: str, message: str):
    job = planned()
    job_changes.warn_of(agent.Warning(code=code, message=message, disk_key=7))(job)
    (kept,) = job.warnings
    assert (kept.code, kept.message, kept.disk_key) == (code, message, 7)


@given(st.text(min_size=1), st.integers(1025, 5000))
def test_of_a_long_warning_the_beginning_is_kept(text: str, length: int):
    job = planned()
    job_changes.warn_of(agent.Warning(code=text * length, message=text * length))(job)
    for kept in (job.warnings[0].code, job.warnings[0].message):
        assert 1020 < len(kept.encode()) <= 1024
        assert (text * length).startswith(kept.removesuffix("…"))
