# SPDX-License-Identifier: Apache-2.0
"""In which order traces came, whatever times their spans tell."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Traces that were here before came first."""
    op.add_column("spans", sa.Column("arrival", sa.BigInteger(), nullable=True))
    op.create_index("ix_spans_arrival", "spans", ["arrival", "trace_id"])
