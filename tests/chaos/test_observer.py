# SPDX-License-Identifier: Apache-2.0
"""The observer sees each thing that a hub must never say; a true story passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.chaos.observer import Observer

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2
from sendense.hub.v1.point_service_pb2 import PointDisk, RestorePoint

pytestmark = pytest.mark.unit

COMPLETE = point_service_pb2.POINT_STATE_COMPLETE


def job(
    state: pb.JobState.ValueType = pb.JOB_STATE_RUNNING,
    phase: pb.JobPhase.ValueType = pb.JOB_PHASE_COPY,
    read: int = 50,
    **more: object,
) -> pb.Job:
    made = pb.Job(job_id="j", vm_name="web", state=state, phase=phase, attempt=1)
    made.disks.add(key=2000, state=pb.DISK_STATE_COPYING, planned_read_bytes=100, read_bytes=read)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def ended(state: pb.JobState.ValueType, **more: object) -> pb.Job:
    made = job(state, pb.JOB_PHASE_DONE, 100, **more)
    made.end_time.GetCurrentTime()
    if state == pb.JOB_STATE_SUCCEEDED:
        made.point_id = "p"
        made.disks[0].state = pb.DISK_STATE_COPIED
    if state == pb.JOB_STATE_FAILED:
        made.failure.reason = Reason.REASON_SNAPSHOT_LOST
        made.failure.message = "it broke"
    return made


def told(*states: pb.Job) -> list[str]:
    observer = Observer()
    view = observer.view()
    for each in states:
        view.job(each)
    return observer.wrong


def test_a_true_story_passes():
    waiting = job(pb.JOB_STATE_WAITING, read=60)
    waiting.interruptions.add(attempt=1)
    again = job(phase=pb.JOB_PHASE_PREPARE, read=40, attempt=2)
    again.interruptions.add(attempt=1)
    succeeded = ended(pb.JOB_STATE_SUCCEEDED, attempt=2)
    succeeded.interruptions.add(attempt=1)
    queued = pb.Job(job_id="j", state=pb.JOB_STATE_QUEUED, phase=pb.JOB_PHASE_QUEUED)
    assert told(queued, job(), job(), waiting, again, succeeded, succeeded) == []
    assert told(job(), ended(pb.JOB_STATE_FAILED)) == []
    assert told(job(), job(pb.JOB_STATE_CANCELLING), ended(pb.JOB_STATE_CANCELLED)) == []


def _without(change: Callable[[pb.Job], None], state: pb.JobState.ValueType) -> pb.Job:
    made = ended(state)
    change(made)
    return made


LIES = {
    "has read 101 bytes of 100 planned": (job(read=101),),
    "SUCCEEDED without an end time": (
        _without(lambda made: made.ClearField("end_time"), pb.JOB_STATE_SUCCEEDED),
    ),
    "SUCCEEDED in phase JOB_PHASE_COPY": (
        _without(lambda made: setattr(made, "phase", pb.JOB_PHASE_COPY), pb.JOB_STATE_SUCCEEDED),
    ),
    "RUNNING in phase JOB_PHASE_DONE": (job(phase=pb.JOB_PHASE_DONE),),
    "succeeded without a point": (
        _without(lambda made: made.ClearField("point_id"), pb.JOB_STATE_SUCCEEDED),
    ),
    "succeeded with disks ['DISK_STATE_COPYING']": (
        _without(lambda made: setattr(made.disks[0], "state", pb.DISK_STATE_COPYING), pb.JOB_STATE_SUCCEEDED),
    ),
    "succeeded with disks []": (_without(lambda made: made.ClearField("disks"), pb.JOB_STATE_SUCCEEDED),),
    "FAILED with a point": (ended(pb.JOB_STATE_FAILED, point_id="p"),),
    "failed without a cause": (_without(lambda made: made.ClearField("failure"), pb.JOB_STATE_FAILED),),
    "changed after its end: attempt": (ended(pb.JOB_STATE_FAILED), ended(pb.JOB_STATE_FAILED, attempt=2)),
    "went from RUNNING to QUEUED": (job(), job(pb.JOB_STATE_QUEUED)),
    "went from CANCELLING to RUNNING": (job(pb.JOB_STATE_CANCELLING), job()),
    "attempt 2 before": (job(attempt=2), job(attempt=1)),
    "had point p, has none": (job(point_id="p"), job()),
    "phase JOB_PHASE_COPY became JOB_PHASE_LAYERS": (job(), job(phase=pb.JOB_PHASE_LAYERS)),
    "read_bytes fell from 50 to 49": (job(), job(read=49)),
    "disk 2000 is gone": (job(), _without(lambda made: made.ClearField("disks"), pb.JOB_STATE_FAILED)),
}


@pytest.mark.parametrize("words", LIES)
def test_each_lie_about_a_job_is_seen(words: str):
    wrong = told(*LIES[words])
    assert any(words in each for each in wrong), wrong


def test_a_disk_that_was_copied_does_not_go_back_within_an_attempt():
    copied = job()
    copied.disks[0].state = pb.DISK_STATE_COPIED
    assert "DISK_STATE_COPIED became DISK_STATE_COPYING" in told(copied, job())[0]
    assert told(copied, job(attempt=2)) == []


def test_interruptions_are_not_forgotten():
    before = job()
    before.interruptions.add(attempt=1)
    assert "1 interruptions became 0" in told(before, job(attempt=2))[0]


def test_a_second_start_is_seen():
    first, second = job(), job()
    first.start_time.FromSeconds(1)
    second.start_time.FromSeconds(2)
    assert "started twice" in told(first, second)[0]


def point(state: point_service_pb2.PointState.ValueType = COMPLETE, layer: str = "a") -> RestorePoint:
    return RestorePoint(point_id="p", state=state, disks=[PointDisk(key=2000, layer_file=layer)])


def test_a_complete_point_is_looked_at_and_may_only_be_deleted():
    observer = Observer(look=lambda found: [f"{found.disks[0].layer_file} is missing"])
    view = observer.view()
    view.point(point())
    view.point(point())
    assert observer.wrong == ["point p is said to be complete: a is missing"]
    view.point(point(point_service_pb2.POINT_STATE_DELETING))
    assert len(observer.wrong) == 1
    view.point(point(point_service_pb2.POINT_STATE_WRITING))
    assert "went from POINT_STATE_DELETING to POINT_STATE_WRITING" in observer.wrong[-1]


def test_a_complete_point_that_changes_its_layers_is_seen():
    observer = Observer()
    view = observer.view()
    view.point(point())
    view.point(point(layer="b"))
    assert observer.wrong == ["point p is complete and changed its disks"]


def test_two_readers_may_be_told_in_any_order_but_each_must_be_told_in_order():
    observer = Observer()
    stream, poll = observer.view(), observer.view()
    stream.job(job(read=60))
    poll.job(job(read=40))  # it was asked earlier, and answered later
    assert observer.wrong == []
    poll.job(job(read=39))
    assert len(observer.wrong) == 1
    assert observer.states_read == 3
