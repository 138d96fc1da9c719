# SPDX-License-Identifier: Apache-2.0
"""What the states and phases of a job mean."""

from __future__ import annotations

from sendense.agent.v1 import backup_pb2 as agent
from sendense.hub.v1 import job_pb2 as pb

ENDED = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})
"""Nothing of such a job runs any more, anywhere."""

ACTIVE = frozenset({pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_CANCELLING, pb.JOB_STATE_WAITING})
"""A VM has at most one such job."""

PHASES: dict[agent.AgentPhase.ValueType, pb.JobPhase.ValueType] = {
    agent.AGENT_PHASE_LOGIN: pb.JOB_PHASE_SNAPSHOT,
    agent.AGENT_PHASE_PREFLIGHT: pb.JOB_PHASE_SNAPSHOT,
    agent.AGENT_PHASE_SNAPSHOT: pb.JOB_PHASE_SNAPSHOT,
    agent.AGENT_PHASE_PLAN: pb.JOB_PHASE_SNAPSHOT,
    agent.AGENT_PHASE_COPY: pb.JOB_PHASE_COPY,
    agent.AGENT_PHASE_CONFIRM: pb.JOB_PHASE_COPY,
    agent.AGENT_PHASE_REMOVE_SNAPSHOT: pb.JOB_PHASE_REMOVE_SNAPSHOT,
}
"""What a phase at the site is called in the job."""


def may_cancel(job: pb.Job) -> bool:
    """Whether stopping this job still means that there is no restore point of it."""
    return job.state == pb.JOB_STATE_WAITING or (job.state in ACTIVE and job.phase < pb.JOB_PHASE_COMMIT)


def export_name(job_id: str, attempt: int, disk_key: int) -> str:
    """Name of the export of one disk: short, for it is part of a unix socket's path, and never used twice."""
    return f"{job_id.replace('-', '')[:12]}-{attempt}-{disk_key}"


def digests_name(export_name: str) -> str:
    """Name of the export of what the previous point of a compared disk holds."""
    return f"{export_name}-d"
