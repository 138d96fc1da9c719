# SPDX-License-Identifier: Apache-2.0
"""Run by Alembic; `sendense_credentials.catalog.database` gives it an open transaction."""

from alembic import context

from sendense_credentials.catalog.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
