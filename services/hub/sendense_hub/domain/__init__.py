# SPDX-License-Identifier: Apache-2.0
"""Pure rules of the hub: no files, no network, no database."""
