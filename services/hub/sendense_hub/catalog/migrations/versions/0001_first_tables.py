# SPDX-License-Identifier: Apache-2.0
"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "hub",
        sa.Column("hub_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("hub_id", name=op.f("pk_hub")),
    )
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("vcenter_name", sa.String(), nullable=False),
        sa.Column("vm_name", sa.String(), nullable=False),
        sa.Column("vm_instance_uuid", sa.String(), nullable=False),
        sa.Column("site_name", sa.String(), nullable=False),
        sa.Column("repository_name", sa.String(), nullable=False),
        sa.Column("state", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.BigInteger(), nullable=False),
        sa.Column("ended_in_phase", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.BigInteger(), nullable=False),
        sa.Column("quiesce", sa.BigInteger(), nullable=False),
        sa.Column("quiesce_result", sa.String(), nullable=False),
        sa.Column("point_id", sa.String(), nullable=False),
        sa.Column("trace_id", sa.String(), nullable=False),
        sa.Column("traceparent", sa.String(), nullable=False),
        sa.Column("failure", sa.LargeBinary(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("start_time_us", sa.BigInteger(), nullable=True),
        sa.Column("end_time_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("request_id", name=op.f("uq_jobs_request_id")),
    )
    op.create_index("ix_jobs_newest", "jobs", ["create_time_us", "job_id"], unique=False)
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"], unique=False)
    op.create_index(op.f("ix_jobs_vm_name"), "jobs", ["vm_name"], unique=False)
    op.create_index(
        "one_active_job_per_vm",
        "jobs",
        ["vcenter_name", "vm_instance_uuid"],
        unique=True,
        sqlite_where=sa.text("state IN (1, 2, 3)"),
        postgresql_where=sa.text("state IN (1, 2, 3)"),
    )
    op.create_table(
        "pending_cleanups",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("vcenter_name", sa.String(), nullable=False),
        sa.Column("vm_instance_uuid", sa.String(), nullable=False),
        sa.Column("vm_name", sa.String(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_pending_cleanups")),
    )
    op.create_table(
        "repositories",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_repositories")),
    )
    op.create_table(
        "restore_points",
        sa.Column("point_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("vcenter_name", sa.String(), nullable=False),
        sa.Column("vcenter_uuid", sa.String(), nullable=False),
        sa.Column("vm_name", sa.String(), nullable=False),
        sa.Column("vm_instance_uuid", sa.String(), nullable=False),
        sa.Column("repository_name", sa.String(), nullable=False),
        sa.Column("directory", sa.String(), nullable=False),
        sa.Column("state", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_time_us", sa.BigInteger(), nullable=True),
        sa.Column("complete_time_us", sa.BigInteger(), nullable=True),
        sa.Column("quiesce_result", sa.String(), nullable=False),
        sa.Column("unprotected_disks", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("point_id", name=op.f("pk_restore_points")),
    )
    op.create_index(op.f("ix_restore_points_job_id"), "restore_points", ["job_id"], unique=False)
    op.create_index(
        "ix_restore_points_of_vm",
        "restore_points",
        ["vcenter_uuid", "vm_instance_uuid", "repository_name"],
        unique=False,
    )
    op.create_index(op.f("ix_restore_points_vm_name"), "restore_points", ["vm_name"], unique=False)
    op.create_table(
        "sites",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("ssh_public_key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sites")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_sites_fingerprint")),
    )
    op.create_table(
        "spans",
        sa.Column("trace_id", sa.String(), nullable=False),
        sa.Column("span_id", sa.String(), nullable=False),
        sa.Column("parent_span_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("start_ns", sa.BigInteger(), nullable=False),
        sa.Column("duration_ns", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.String(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "span_id", name=op.f("pk_spans")),
    )
    op.create_table(
        "job_disks",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("key", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("capacity_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("mode_reason", sa.String(), nullable=False),
        sa.Column("planned_read_bytes", sa.BigInteger(), nullable=False),
        sa.Column("changed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("read_bytes", sa.BigInteger(), nullable=False),
        sa.Column("copied_bytes", sa.BigInteger(), nullable=False),
        sa.Column("zero_bytes", sa.BigInteger(), nullable=False),
        sa.Column("wire_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.job_id"], name=op.f("fk_job_disks_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_job_disks")),
    )
    op.create_table(
        "job_warnings",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("disk_key", sa.BigInteger(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.job_id"], name=op.f("fk_job_warnings_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_warnings")),
    )
    op.create_table(
        "point_disks",
        sa.Column("point_id", sa.String(), nullable=False),
        sa.Column("key", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("capacity_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("mode_reason", sa.String(), nullable=False),
        sa.Column("layer_file", sa.String(), nullable=False),
        sa.Column("parent_point_id", sa.String(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("copied_bytes", sa.BigInteger(), nullable=False),
        sa.Column("change_id", sa.String(), nullable=False),
        sa.Column("disk_object_id", sa.String(), nullable=False),
        sa.Column("backing_uuid", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["point_id"],
            ["restore_points.point_id"],
            name=op.f("fk_point_disks_point_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("point_id", "key", name=op.f("pk_point_disks")),
    )
    op.create_index(op.f("ix_point_disks_parent_point_id"), "point_disks", ["parent_point_id"], unique=False)
    op.create_table(
        "vcenters",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("port", sa.BigInteger(), nullable=False),
        sa.Column("ca_pem", sa.String(), nullable=False),
        sa.Column("certificate_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("credential_id", sa.String(), nullable=False),
        sa.Column("site_name", sa.String(), nullable=False),
        sa.Column("instance_uuid", sa.String(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["site_name"], ["sites.name"], name=op.f("fk_vcenters_site_name")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_vcenters")),
    )
    op.create_table(
        "virtual_machines",
        sa.Column("vcenter_name", sa.String(), nullable=False),
        sa.Column("instance_uuid", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("moref", sa.String(), nullable=False),
        sa.Column("facts", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vcenter_name"],
            ["vcenters.name"],
            name=op.f("fk_virtual_machines_vcenter_name"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("vcenter_name", "instance_uuid", name=op.f("pk_virtual_machines")),
    )
    op.create_index(op.f("ix_virtual_machines_name"), "virtual_machines", ["name"], unique=False)
