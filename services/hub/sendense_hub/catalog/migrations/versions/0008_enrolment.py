# SPDX-License-Identifier: Apache-2.0
"""Invitations of sites, keys that were revoked or replaced."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Sites can be revoked, and let in by invitation."""
    op.add_column("sites", sa.Column("revoke_time_us", sa.BigInteger(), nullable=True))
    op.create_table(
        "retired_keys",
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("site_name", sa.String(), nullable=False),
        sa.Column("retire_time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_retired_keys")),
    )
    op.create_table(
        "invitations",
        sa.Column("site_name", sa.String(), nullable=False),
        sa.Column("code_hash", sa.LargeBinary(), nullable=False),
        sa.Column("replaced_code_hash", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.BigInteger(), nullable=False),
        sa.Column("rotates", sa.Boolean(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("expire_time_us", sa.BigInteger(), nullable=False),
        sa.Column("ssh_public_key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("signing_public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sealing_public_key", sa.LargeBinary(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("site_name", name=op.f("pk_invitations")),
    )
