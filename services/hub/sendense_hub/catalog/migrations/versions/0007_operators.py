# SPDX-License-Identifier: Apache-2.0
"""Tokens and certificates of operators."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "operators",
        sa.Column("kind", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.BigInteger(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary()),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("expire_time_us", sa.BigInteger()),
        sa.Column("last_used_time_us", sa.BigInteger()),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_operators")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_operators_token_sha256")),
    )
