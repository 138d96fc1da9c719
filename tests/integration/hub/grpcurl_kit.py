# SPDX-License-Identifier: Apache-2.0
"""One API process with a few points, spoken to by the real grpcurl."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.hub.kit import Api, World, api_of, world
from tests.integration.hub.scripted_agent import MIB, backup, incremental, plan_of
from tests.integration.hub.test_backups import FIRST, THEN
from tests.integration.repository.kit import noise

from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2

HUB = "sendense.hub.v1."
LAST = {2000: {2 * MIB: noise(5, 4096)}}


@dataclass
class Shared:
    """One API for all tests here, with a chain of three points; nobody may change what it holds."""

    api: Api
    world: World
    points: list[str]
    job_id: str

    async def call(self, method: str, request: Any = None, *options: str) -> tuple[int, str, str]:
        """Exit code, output and errors of grpcurl."""
        text = request if isinstance(request, str) else json.dumps(request or {})
        return await self.grpcurl(
            "-d", "@", *options, str(self.world.paths.api_socket), HUB + method, data=text
        )

    async def grpcurl(self, *arguments: str, data: str = "") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("grpcurl")),
            *("-plaintext", "-unix", "-max-time", "40", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate(data.encode())
        return process.returncode or 0, output.decode(), errors.decode()

    async def answer(self, method: str, request: Any = None) -> list[Any]:
        """All messages of a call that works."""
        code, output, errors = await self.call(method, request)
        assert code == 0, errors
        decoder, found, rest = json.JSONDecoder(), [], output.strip()
        while rest:
            message, end = decoder.raw_decode(rest)
            found.append(message)
            rest = rest[end:].strip()
        return found

    async def refused(self, method: str, request: Any) -> tuple[str, str, dict[str, str]]:
        """gRPC code, reason and metadata of a call that does not."""
        code, output, errors = await self.call(method, request)
        assert code != 0, output
        grpc_code = re.search(r"Code: (\w+)", errors)
        assert grpc_code, errors
        details = re.search(r"1\)\s*(\{.*\})", errors, re.DOTALL)
        info = json.loads(details[1]) if details else {}
        assert info.get("domain", "sendense") == "sendense"
        return grpc_code[1], info.get("reason", ""), info.get("metadata", {})


@contextlib.asynccontextmanager
async def shared_api() -> AsyncIterator[Shared]:
    """With a chain of three points of one VM; in the end it still runs, and has lost none of them."""
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    async with world(directory) as made, api_of(made) as api:
        await api.register()
        points = []
        for script in (
            backup(FIRST, plan_of()),
            backup(THEN, plan_of(incremental())),
            backup(LAST, plan_of(incremental())),
        ):
            made.agent.script = script
            ended = await api.ended((await api.start_backup()).job_id)
            assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
            points.append(ended.point_id)
        yield Shared(api, made, points, ended.job_id)
        assert api.process.returncode is None, "no request has ended the API"
        found = await api.points.ListPoints(point_service_pb2.ListPointsRequest())
        assert sorted(point.point_id for point in found.points) == sorted(points), (
            "no request has lost a point"
        )
    shutil.rmtree(directory)
