# SPDX-License-Identifier: Apache-2.0
"""Interrupted jobs: what happened to them, and what their next attempt goes on with."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# QUEUED, RUNNING, CANCELLING, and WAITING, which is new.
_ACTIVE = sa.text("state IN (1, 2, 3, 7)")


def upgrade() -> None:
    """A waiting job is active too."""
    op.add_column(
        "job_disks", sa.Column("recopied_bytes", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.create_table(
        "job_interruptions",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("interruption", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.job_id"], name=op.f("fk_job_interruptions_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_interruptions")),
    )
    op.create_table(
        "job_plans",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("snapshot_time_us", sa.BigInteger(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.Column("eras", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.job_id"], name=op.f("fk_job_plans_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_plans")),
    )
    op.drop_index("one_active_job_per_vm", table_name="jobs")
    op.create_index(
        "one_active_job_per_vm",
        "jobs",
        ["vcenter_name", "vm_instance_uuid"],
        unique=True,
        sqlite_where=_ACTIVE,
        postgresql_where=_ACTIVE,
    )
