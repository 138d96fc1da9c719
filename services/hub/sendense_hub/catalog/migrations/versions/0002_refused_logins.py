# SPDX-License-Identifier: Apache-2.0
"""Credentials whose login was refused."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "refused_logins",
        sa.Column("credential_id", sa.String(), nullable=False),
        sa.Column("vcenter_name", sa.String(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("credential_id", name=op.f("pk_refused_logins")),
    )
