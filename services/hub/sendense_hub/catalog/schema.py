# SPDX-License-Identifier: Apache-2.0
"""Tables. Moments are microseconds since 1970 (UTC); states are the numbers of the contracts' enums."""

from __future__ import annotations

import sqlalchemy as sa

from sendense_hub.domain.job_rules import ACTIVE

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(name: str, **options: object) -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=False, **options)  # type: ignore[arg-type]


def _number(name: str, **options: object) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, **options)  # type: ignore[arg-type]


hub = sa.Table("hub", metadata, _text("hub_id", primary_key=True))

sites = sa.Table(
    "sites",
    metadata,
    _text("name", primary_key=True),
    _text("ssh_public_key"),
    _text("fingerprint", unique=True),
    _number("create_time_us"),
    sa.Column("revoke_time_us", sa.BigInteger),
)

# Keys that were revoked or replaced: they never come back.
retired_keys = sa.Table(
    "retired_keys",
    metadata,
    _text("fingerprint", primary_key=True),
    _text("site_name"),
    _number("retire_time_us"),
)

invitations = sa.Table(
    "invitations",
    metadata,
    _text("site_name", primary_key=True),
    # The code itself is nowhere.
    sa.Column("code_hash", sa.LargeBinary, nullable=False),
    # Of the invitation before.
    sa.Column("replaced_code_hash", sa.LargeBinary, nullable=False),
    _number("state"),
    sa.Column("rotates", sa.Boolean, nullable=False),
    _number("create_time_us"),
    _number("expire_time_us"),
    _text("ssh_public_key"),
    _text("fingerprint"),
    sa.Column("signing_public_key", sa.LargeBinary, nullable=False),
    sa.Column("sealing_public_key", sa.LargeBinary, nullable=False),
    _text("why"),
)

vcenters = sa.Table(
    "vcenters",
    metadata,
    _text("name", primary_key=True),
    _text("host"),
    _number("port"),
    _text("ca_pem"),
    sa.Column("certificate_sha256", sa.LargeBinary, nullable=False),
    _text("credential_id"),
    sa.Column("site_name", sa.ForeignKey("sites.name"), nullable=False),
    _text("instance_uuid"),
    _number("create_time_us"),
)

virtual_machines = sa.Table(
    "virtual_machines",
    metadata,
    sa.Column("vcenter_name", sa.ForeignKey("vcenters.name", ondelete="CASCADE"), primary_key=True),
    _text("instance_uuid", primary_key=True),
    _text("name", index=True),
    _text("moref"),
    # The agent's VirtualMachine message.
    sa.Column("facts", sa.LargeBinary, nullable=False),
)

repositories = sa.Table(
    "repositories",
    metadata,
    _text("name", primary_key=True),
    _text("path"),
    _text("repository_id"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    _text("job_id", primary_key=True),
    _text("request_id", unique=True),
    _text("vcenter_name"),
    _text("vm_name", index=True),
    _text("vm_instance_uuid"),
    _text("site_name"),
    _text("repository_name"),
    _number("state", index=True),
    _number("phase"),
    _number("ended_in_phase"),
    _number("attempt"),
    _number("mode"),
    _number("quiesce"),
    _text("quiesce_result"),
    _text("point_id"),
    _text("trace_id"),
    _text("traceparent"),
    # The Failure message; empty: none.
    sa.Column("failure", sa.LargeBinary, nullable=False),
    _number("create_time_us"),
    sa.Column("start_time_us", sa.BigInteger),
    sa.Column("end_time_us", sa.BigInteger),
    _number("bytes_per_second", server_default="0"),
    sa.Index("ix_jobs_newest", "create_time_us", "job_id"),
)
# Two requests at the same moment cannot both get a job for one VM.
sa.Index(
    "one_active_job_per_vm",
    jobs.c.vcenter_name,
    jobs.c.vm_instance_uuid,
    unique=True,
    sqlite_where=jobs.c.state.in_(sorted(ACTIVE)),
    postgresql_where=jobs.c.state.in_(sorted(ACTIVE)),
)

job_disks = sa.Table(
    "job_disks",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    _number("key", primary_key=True),
    _text("label"),
    _number("capacity_bytes"),
    _number("state"),
    _text("mode"),
    _text("mode_reason"),
    _number("planned_read_bytes"),
    _number("changed_bytes"),
    _number("read_bytes"),
    _number("copied_bytes"),
    _number("zero_bytes"),
    _number("wire_bytes"),
    sa.Column("seconds", sa.Float, nullable=False),
    _number("recopied_bytes", server_default="0"),
    _number("audited_bytes", server_default="0"),
    _number("audit_mismatches", server_default="0"),
)

job_warnings = sa.Table(
    "job_warnings",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    _number("number", primary_key=True),
    _text("code"),
    _text("message"),
    _number("disk_key"),
    _number("time_us"),
)

job_interruptions = sa.Table(
    "job_interruptions",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    _number("number", primary_key=True),
    # The JobInterruption message.
    sa.Column("interruption", sa.LargeBinary, nullable=False),
)

# Of jobs that have not ended: what a later attempt needs to go on.
job_plans = sa.Table(
    "job_plans",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    _number("snapshot_time_us"),
    # The agent's BackupPlan message.
    sa.Column("plan", sa.LargeBinary, nullable=False),
    # By device key: [snapshot, change ID, first byte in the ledger] of each snapshot that was read.
    sa.Column("eras", sa.JSON, nullable=False),
)

restore_points = sa.Table(
    "restore_points",
    metadata,
    _text("point_id", primary_key=True),
    _text("job_id", index=True),
    _text("vcenter_name"),
    _text("vcenter_uuid"),
    _text("vm_name", index=True),
    _text("vm_instance_uuid"),
    _text("repository_name"),
    _text("directory"),
    _number("state"),
    sa.Column("snapshot_time_us", sa.BigInteger),
    sa.Column("complete_time_us", sa.BigInteger),
    _text("quiesce_result"),
    sa.Column("unprotected_disks", sa.JSON, nullable=False),
    sa.Index("ix_restore_points_of_vm", "vcenter_uuid", "vm_instance_uuid", "repository_name"),
)

point_disks = sa.Table(
    "point_disks",
    metadata,
    sa.Column("point_id", sa.ForeignKey("restore_points.point_id", ondelete="CASCADE"), primary_key=True),
    _number("key", primary_key=True),
    _text("label"),
    _number("capacity_bytes"),
    _text("mode"),
    _text("mode_reason"),
    _text("layer_file"),
    # No foreign key to a point: a restrained delete is a matter of words, not of IntegrityError.
    _text("parent_point_id", index=True),
    _number("stored_bytes"),
    _number("copied_bytes"),
    _text("change_id"),
    _text("disk_object_id"),
    _text("backing_uuid"),
    sa.Column("verify_time_us", sa.BigInteger),
    # What is wrong with the layer itself; the point that was looked at when it was found.
    sa.Column("damage", sa.String),
    sa.Column("damage_time_us", sa.BigInteger),
    sa.Column("damage_seen_from", sa.String),
)

pending_cleanups = sa.Table(
    "pending_cleanups",
    metadata,
    _text("job_id", primary_key=True),
    _text("vcenter_name"),
    _text("vm_instance_uuid"),
    _text("vm_name"),
    _number("create_time_us"),
)

refused_logins = sa.Table(
    "refused_logins",
    metadata,
    _text("credential_id", primary_key=True),
    _text("vcenter_name"),
    _number("time_us"),
    _text("message"),
)

operators = sa.Table(
    "operators",
    metadata,
    # OperatorKind of the contracts.
    _number("kind", primary_key=True, autoincrement=False),
    _text("name", primary_key=True),
    _number("role"),
    # Of a token. Nothing else of it is kept.
    sa.Column("token_sha256", sa.LargeBinary, unique=True),
    _number("create_time_us"),
    sa.Column("expire_time_us", sa.BigInteger),
    sa.Column("last_used_time_us", sa.BigInteger),
)

trust_events = sa.Table(
    "trust_events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    _text("vcenter_uuid"),
    _text("vm_instance_uuid"),
    _number("disk_key"),
    _number("time_us"),
    _text("kind"),
    _text("job_id"),
    _text("repository_name"),
    _text("change_id"),
    _text("message"),
    sa.Index("ix_trust_events_of_vm", "vcenter_uuid", "vm_instance_uuid"),
)

audit_heads = sa.Table(
    "audit_heads",
    metadata,
    _text("log", primary_key=True),
    _number("sequence"),
    sa.Column("record_hash", sa.LargeBinary, nullable=False),
    _number("seen_time_us"),
    _text("contradiction"),
)

spans = sa.Table(
    "spans",
    metadata,
    _text("trace_id", primary_key=True),
    _text("span_id", primary_key=True),
    _text("parent_span_id"),
    _text("name"),
    _text("service"),
    _number("start_ns"),
    _number("duration_ns"),
    _text("error"),
    sa.Column("attributes", sa.JSON, nullable=False),
    # Of the trace. None: before traces were numbered.
    sa.Column("arrival", sa.BigInteger),
    # Who sent it; empty: a process of the installation, or it was there before this was known.
    _text("site", server_default=""),
    sa.Index("ix_spans_arrival", "arrival", "trace_id"),
)
