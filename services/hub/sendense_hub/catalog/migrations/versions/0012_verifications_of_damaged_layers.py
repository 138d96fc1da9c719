# SPDX-License-Identifier: Apache-2.0
"""What was found right and is damaged now, or is built on what is."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_FORGET = """
WITH RECURSIVE affected (point_id, key) AS (
    SELECT point_id, key FROM point_disks WHERE damage IS NOT NULL
    UNION
    SELECT above.point_id, above.key FROM point_disks AS above
    JOIN affected ON above.parent_point_id = affected.point_id AND above.key = affected.key
)
UPDATE point_disks SET verify_time_us = NULL WHERE (point_id, key) IN (SELECT point_id, key FROM affected)
"""


def upgrade() -> None:
    """The times of verifications were those of their end: whether damage was found meanwhile is not known."""
    op.execute(sa.text(_FORGET))
