# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_hub.gateway`, started by the supervisor."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from sendense_common.paths import HubPaths
from sendense_common.service import run_service
from sendense_hub.gateway.handover import GatewayEnd
from sendense_hub.gateway.limits import Limits
from sendense_hub.gateway.server import run


def main() -> int:
    """Runs a gateway; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sendense_hub.gateway",
        description="Serves SSH to agents. Started by sendense-hub, which hands it accepted connections.",
    )
    limits = Limits()
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the hub's state directory")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the hub's socket directory")
    parser.add_argument("--control-fd", type=int, required=True, metavar="N", help="inherited control socket")
    parser.add_argument(
        "--channels-per-connection",
        type=int,
        default=limits.channels_per_connection,
        metavar="N",
        help="channels one SSH connection may have (default %(default)s)",
    )
    parser.add_argument(
        "--connections-per-agent",
        type=int,
        default=limits.connections_per_agent,
        metavar="N",
        help="SSH connections one agent may have here (default %(default)s)",
    )
    parser.add_argument("--logins", type=int, default=limits.logins, metavar="N")
    parser.add_argument("--logins-per-address", type=int, default=limits.logins_per_address, metavar="N")
    parser.add_argument("--login-seconds", type=float, default=limits.login_timeout_s, metavar="S")
    options = parser.parse_args()
    limits = Limits(
        channels_per_connection=options.channels_per_connection,
        connections_per_agent=options.connections_per_agent,
        logins=options.logins,
        logins_per_address=options.logins_per_address,
        login_timeout_s=options.login_seconds,
    )
    handover = GatewayEnd(options.control_fd)
    paths = HubPaths(options.state, options.run)

    async def serve(stopping: asyncio.Event) -> None:
        await run(paths, limits, handover, stopping)

    return run_service("sendense-gateway", serve)


if __name__ == "__main__":
    sys.exit(main())
