# SPDX-License-Identifier: Apache-2.0
"""An API process in small: health, and authorization from a JSON file that the test writes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.integration.tunnel.kit import FakeAuthorization

from sendense.hub.v1.authorization_service_pb2_grpc import add_AuthorizationServiceServicer_to_server
from sendense_common import rpc
from sendense_common.paths import HubPaths
from sendense_common.service import died_before, run_service, say_taken_over

STATE, RUN = Path(sys.argv[1]), Path(sys.argv[2])


async def main(stopping: asyncio.Event) -> None:
    paths = HubPaths(STATE, RUN)
    fake = FakeAuthorization()
    tables = json.loads((STATE / "authorization.json").read_text())
    fake.agents = tables["agents"]
    fake.targets = {name: Path(path) for name, path in tables["targets"].items()}
    (STATE / "died_before").write_text(died_before())
    say_taken_over()
    (STATE / "api.pid").write_text(str(os.getpid()))
    service = rpc.Service(
        "sendense.hub.v1.AuthorizationService", add_AuthorizationServiceServicer_to_server, fake
    )
    async with rpc.serve(paths.authorization_socket, [service]), rpc.serve(paths.api_socket, []):
        await stopping.wait()


if __name__ == "__main__":
    sys.exit(run_service("fake-api", main))
