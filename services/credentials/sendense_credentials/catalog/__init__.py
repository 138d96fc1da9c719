# SPDX-License-Identifier: Apache-2.0
"""The service's own SQLite database: envelopes, agents' public keys, leases. No plaintext, no key."""

from sendense_credentials.catalog.database import Catalog, Connection, open_catalog

__all__ = ["Catalog", "Connection", "open_catalog"]
