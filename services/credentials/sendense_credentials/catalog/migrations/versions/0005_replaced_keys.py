# SPDX-License-Identifier: Apache-2.0
"""New keys of an agent are told apart from a right that was taken away."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """What ended before now was revoked; of keys that were replaced before, nothing is known."""
    op.add_column("agents", sa.Column("replaced_signing_key", sa.LargeBinary(), nullable=True))
    op.add_column("leases", sa.Column("end_reason", sa.Integer(), nullable=True))
