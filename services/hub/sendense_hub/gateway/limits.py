# SPDX-License-Identifier: Apache-2.0
"""How much one gateway gives to whom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Per gateway process; the defaults fit a site that copies fifty disks at once."""

    channels_per_connection: int = 64
    """Open and opening channels of one SSH connection."""
    connections_per_agent: int = 128
    """SSH connections of one agent: its control process and one per mover."""
    logins: int = 64
    """Connections that are not logged in yet; more are closed at once."""
    login_timeout_s: float = 20.0
    """For key exchange and login."""
    keepalive_s: float = 10.0
    """A silent agent is asked this often, and given up after three times as long."""
    recheck_s: float = 1.5
    """Rights of what is open are asked for again this often, whatever revocations were pushed."""
