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
    service_channels_per_agent: int = 64
    """Channels of all connections of one agent to `credentials` and `telemetry`, open and opening: what an
    honest one needs comes through the connection of its control process."""
    logins: int = 128
    """Connections that are not logged in yet; for one more, the oldest is closed."""
    logins_per_address: int = 48
    """Of these, from one address: half of a site's movers may come back at the same moment."""
    strangers: int = 8
    """Connections of agents that are not known yet and want to enrol; from one address half of that."""
    stranger_for_s: float = 60.0
    """How long such a connection may last; the agent comes again while it waits."""
    keys_per_login: int = 6
    """Keys that one connection may try; each costs a question to the API and a line of the log."""
    login_timeout_s: float = 20.0
    """For key exchange and login."""
    keepalive_s: float = 10.0
    """A silent agent is asked this often, and given up after three times as long."""
    refusals_per_connection: int = 1000
    """Requests that may be refused; then the connection ends: each of them costs a line of the log."""
    recheck_s: float = 1.5
    """Rights of what is open are asked for again this often, whatever revocations were pushed."""

    def in_words(self, gateways: int) -> str:
        """One line for a person, for so many gateways together."""
        return (
            f"{gateways * self.logins} connections may be logging in, {gateways * self.logins_per_address} "
            f"from one address, for {self.login_timeout_s:g} s; an agent may have "
            f"{gateways * self.connections_per_agent} with {self.channels_per_connection} channels each"
        )
