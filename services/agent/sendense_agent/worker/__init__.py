# SPDX-License-Identifier: Apache-2.0
"""One process per operation: holds the password and the session, ends with the operation."""
