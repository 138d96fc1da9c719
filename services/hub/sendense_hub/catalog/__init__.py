# SPDX-License-Identifier: Apache-2.0
"""The catalog: what the hub knows, in one relational database.

Functions take a connection; whoever calls them makes the transaction.
"""

from sendense_hub.catalog.database import Catalog, open_catalog

__all__ = ["Catalog", "open_catalog"]
