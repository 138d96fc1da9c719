# SPDX-License-Identifier: Apache-2.0
"""Alembic's entry: migrations run on the connection that the catalog is opened with."""

from alembic import context

from sendense_hub.catalog.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
