# SPDX-License-Identifier: Apache-2.0
"""What verifications of points have found."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Disks of points know when they were found right, and what is wrong with them."""
    op.add_column("point_disks", sa.Column("verify_time_us", sa.BigInteger(), nullable=True))
    op.add_column("point_disks", sa.Column("damage", sa.String(), nullable=True))
    op.add_column("point_disks", sa.Column("damage_time_us", sa.BigInteger(), nullable=True))
    op.add_column("point_disks", sa.Column("damage_seen_from", sa.String(), nullable=True))
