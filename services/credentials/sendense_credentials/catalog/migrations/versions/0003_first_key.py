# SPDX-License-Identifier: Apache-2.0
"""A secret keeps the name of the key that it was enclosed under, when its data key goes under another one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Until now the two were the same."""
    op.add_column("credentials", sa.Column("first_key_id", sa.String, nullable=False, server_default=""))
    op.execute("UPDATE credentials SET first_key_id = key_id")
