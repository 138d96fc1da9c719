# SPDX-License-Identifier: Apache-2.0
"""The agent's lasting process: keeps the tunnel, starts a worker per operation, keeps what it said."""
