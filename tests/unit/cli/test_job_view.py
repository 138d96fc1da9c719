# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a job that was interrupted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sendense.common.v1.failure_pb2 import Failure
from sendense.hub.v1 import job_pb2 as pb
from sendense_cli import job_view

pytestmark = pytest.mark.unit


def shown(job: pb.Job) -> str:
    out = io.StringIO()
    Console(file=out, width=400).print(job_view.summary(job))
    return out.getvalue()


def job(state: pb.JobState.ValueType, **interruption: object) -> pb.Job:
    made = pb.Job(job_id="j", vm_name="web", state=state, phase=pb.JOB_PHASE_COPY, attempt=2)
    made.interruptions.add(
        attempt=1,
        phase=pb.JOB_PHASE_COPY,
        failure=Failure(message="the repository default is full"),
        **interruption,
    )
    return made


def test_a_waiting_job_says_what_it_waits_for_and_when_it_tries():
    waiting = job(pb.JOB_STATE_WAITING)
    waiting.interruptions[0].next_try_time.FromSeconds(1_700_000_000)
    text = shown(waiting)
    assert "waiting (copy)" in text
    assert "attempt 1 in phase copy: the repository default is full; the next try is at " in text


@pytest.mark.parametrize(
    ("went_on", "words"),
    [
        ("same_snapshot", "went on with the same snapshot"),
        ("new_snapshot", "went on with a new snapshot"),
        ("from_the_start", "copied from the start"),
    ],
)
def test_a_job_that_went_on_says_how_and_what_was_copied_again(went_on: str, words: str):
    text = shown(job(pb.JOB_STATE_SUCCEEDED, went_on=went_on, recopied_bytes=3 * 2**20))
    assert f"full; {words}, 3.0 MiB were copied again" in text
    assert "next try" not in text


def test_a_disk_that_was_compared_is_not_called_a_full_copy():
    done = job(pb.JOB_STATE_SUCCEEDED)
    done.disks.add(label="Hard disk 1", mode="full", mode_reason="first_backup", state=pb.DISK_STATE_COPIED)
    done.disks.add(
        label="Hard disk 2", mode="compared", mode_reason="cbt_not_trusted", state=pb.DISK_STATE_COPIED
    )
    text = " ".join(shown(done).split())
    assert "Full copy Hard disk 1: first backup" in text
    assert "Compared copy Hard disk 2: cbt not trusted" in text
