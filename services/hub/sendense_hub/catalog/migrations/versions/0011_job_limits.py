# SPDX-License-Identifier: Apache-2.0
"""How fast a job may read."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Jobs had no limit before."""
    op.add_column("jobs", sa.Column("bytes_per_second", sa.BigInteger(), nullable=False, server_default="0"))
