# SPDX-License-Identifier: Apache-2.0
"""The tables, as the newest migration leaves them. Times are microseconds since 1970, UTC."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("credential_id", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, nullable=False, unique=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("key_id", sa.String, nullable=False),
    sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.Column("rotate_time_us", sa.BigInteger, nullable=False),
    sa.Column("bound_to", sa.String, nullable=False, server_default=""),
    sa.Column("first_key_id", sa.String, nullable=False, server_default=""),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("agent_id", sa.String, primary_key=True),
    sa.Column("signing_public_key", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("sealing_public_key", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.Column("replaced_signing_key", sa.LargeBinary),
)

grants = sa.Table(
    "grants",
    metadata,
    sa.Column(
        "credential_id",
        sa.String,
        sa.ForeignKey("credentials.credential_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column(
        "agent_id",
        sa.String,
        sa.ForeignKey("agents.agent_id", ondelete="CASCADE"),
        primary_key=True,
        index=True,
    ),
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("lease_id", sa.String, primary_key=True),
    sa.Column(
        "credential_id",
        sa.String,
        sa.ForeignKey("credentials.credential_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column(
        "agent_id",
        sa.String,
        sa.ForeignKey("agents.agent_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("operation", sa.Integer, nullable=False),
    sa.Column("subject_id", sa.String, nullable=False),
    sa.Column("expire_time_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("redeem_time_us", sa.BigInteger),
    sa.Column("end_time_us", sa.BigInteger),
    sa.Column("end_cause", sa.String),
    sa.Column("end_reason", sa.Integer),
)

audit_heads = sa.Table(
    "audit_heads",
    metadata,
    sa.Column("log", sa.String, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("record_hash", sa.LargeBinary, nullable=False),
    sa.Column("seen_time_us", sa.BigInteger, nullable=False),
    sa.Column("contradiction", sa.String, nullable=False),
)
