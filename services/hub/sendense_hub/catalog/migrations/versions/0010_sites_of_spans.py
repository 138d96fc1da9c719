# SPDX-License-Identifier: Apache-2.0
"""Which site sent a span."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Of those that are here nobody knows."""
    op.add_column("spans", sa.Column("site", sa.String(), nullable=False, server_default=""))
