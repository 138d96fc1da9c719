# SPDX-License-Identifier: Apache-2.0
"""Grants, what credentials are bound to, and why leases ended.

Until now each agent could open each credential, and nobody can tell any more which ones were meant: what is
there stays as it was, as a grant that is seen and can be taken back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "grants",
        sa.Column("credential_id", sa.String, nullable=False),
        sa.Column("agent_id", sa.String, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("credential_id", "agent_id", name="pk_grants"),
        sa.ForeignKeyConstraint(
            ["credential_id"],
            ["credentials.credential_id"],
            name="fk_grants_credential_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.agent_id"], name="fk_grants_agent_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_grants_agent_id", "grants", ["agent_id"])
    op.execute(
        "INSERT INTO grants (credential_id, agent_id, create_time_us) "
        "SELECT credential_id, agent_id, max(credentials.create_time_us, agents.create_time_us) "
        "FROM credentials CROSS JOIN agents"
    )
    op.add_column("credentials", sa.Column("bound_to", sa.String, nullable=False, server_default=""))
    op.add_column("leases", sa.Column("end_time_us", sa.BigInteger))
    op.add_column("leases", sa.Column("end_cause", sa.String))
