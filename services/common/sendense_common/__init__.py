# SPDX-License-Identifier: Apache-2.0
"""What every Sendense service shares: errors, paths, processes, RPC plumbing, telemetry, keys, tunnel.

Holds nothing that belongs to one service alone, and imports none of them.
"""

__version__ = "0.1.0"
