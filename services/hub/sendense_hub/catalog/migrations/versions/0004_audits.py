# SPDX-License-Identifier: Apache-2.0
"""Audits of changed block tracking, and whether it is trusted."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Disks of jobs count what was audited."""
    for name in ("audited_bytes", "audit_mismatches"):
        op.add_column("job_disks", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "trust_events",
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=True),
        sa.Column("vcenter_uuid", sa.String(), nullable=False),
        sa.Column("vm_instance_uuid", sa.String(), nullable=False),
        sa.Column("disk_key", sa.BigInteger(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("repository_name", sa.String(), nullable=False),
        sa.Column("change_id", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_trust_events")),
    )
    op.create_index("ix_trust_events_of_vm", "trust_events", ["vcenter_uuid", "vm_instance_uuid"])
