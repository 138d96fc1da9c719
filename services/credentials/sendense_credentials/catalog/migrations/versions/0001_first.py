# SPDX-License-Identifier: Apache-2.0
"""The first tables: credentials, agents, leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "credentials",
        sa.Column("credential_id", sa.String, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("rotate_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("credential_id", name="pk_credentials"),
        sa.UniqueConstraint("request_id", name="uq_credentials_request_id"),
        sa.UniqueConstraint("name", name="uq_credentials_name"),
    )
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.String, nullable=False),
        sa.Column("signing_public_key", sa.LargeBinary, nullable=False),
        sa.Column("sealing_public_key", sa.LargeBinary, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agents"),
        sa.UniqueConstraint("signing_public_key", name="uq_agents_signing_public_key"),
        sa.UniqueConstraint("sealing_public_key", name="uq_agents_sealing_public_key"),
    )
    op.create_table(
        "leases",
        sa.Column("lease_id", sa.String, nullable=False),
        sa.Column("credential_id", sa.String, nullable=False),
        sa.Column("agent_id", sa.String, nullable=False),
        sa.Column("operation", sa.Integer, nullable=False),
        sa.Column("subject_id", sa.String, nullable=False),
        sa.Column("expire_time_us", sa.BigInteger, nullable=False),
        sa.Column("redeem_time_us", sa.BigInteger),
        sa.PrimaryKeyConstraint("lease_id", name="pk_leases"),
        sa.ForeignKeyConstraint(
            ["credential_id"],
            ["credentials.credential_id"],
            name="fk_leases_credential_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.agent_id"], name="fk_leases_agent_id", ondelete="CASCADE"
        ),
    )
    for column in ("credential_id", "agent_id", "expire_time_us"):
        op.create_index(f"ix_leases_{column}", "leases", [column])
