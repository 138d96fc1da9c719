# SPDX-License-Identifier: Apache-2.0
"""Heads of audit logs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """One row for each log."""
    op.create_table(
        "audit_heads",
        sa.Column("log", sa.String(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("record_hash", sa.LargeBinary(), nullable=False),
        sa.Column("seen_time_us", sa.BigInteger(), nullable=False),
        sa.Column("contradiction", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("log", name=op.f("pk_audit_heads")),
    )
