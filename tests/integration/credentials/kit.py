# SPDX-License-Identifier: Apache-2.0
"""A credentials service as its own process, and one operator, hub and agent to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

import sendense.credentials.v1.credential_service_pb2 as operator_pb
import sendense.credentials.v1.lease_service_pb2 as hub_pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.credentials.v1.lease_service_pb2_grpc import LeaseServiceStub
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_agent.clients.credentials import Login, redeem
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentKeys
from sendense_common.paths import CredentialsPaths
from sendense_credentials.vault import create_key_file

BACKUP = Operation.OPERATION_BACKUP
USERNAME = "administrator@vsphere.local"
PASSWORD = "correct horse battery staple"
ENDPOINT = operator_pb.Endpoint(host="vc.example.net", port=443, certificate_sha256=bytes(32))
NO_CREDENTIAL = str(uuid.UUID(int=0))


def sendense_credentials(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sendense_credentials.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@dataclass
class Service:
    """A running service."""

    paths: CredentialsPaths
    process: subprocess.Popen[bytes]
    log: Path
    agent_id: str = "site-a"
    agent: AgentKeys = field(default_factory=AgentKeys.generate)
    issued: dict[str, str] = field(default_factory=dict)
    """Lease to credential."""

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """The service's database, while it runs or afterwards."""
        with contextlib.closing(sqlite3.connect(self.paths.database_file, timeout=10)) as connection:
            with connection:
                yield connection

    @contextlib.asynccontextmanager
    async def operator(self) -> AsyncIterator[CredentialServiceStub]:
        async with rpc.connect(self.paths.operator_socket) as channel:
            yield CredentialServiceStub(channel)

    @contextlib.asynccontextmanager
    async def hub(self) -> AsyncIterator[LeaseServiceStub]:
        async with rpc.connect(self.paths.hub_socket) as channel:
            yield LeaseServiceStub(channel)

    async def store(
        self,
        name: str | None = None,
        password: str = PASSWORD,
        *,
        granted: Sequence[str] = ("site-a",),
        endpoint: operator_pb.Endpoint = ENDPOINT,
    ) -> operator_pb.Credential:
        request = store_request(name, password)
        request.secret.endpoint.CopyFrom(endpoint)
        request.agent_ids.extend(granted)
        async with self.operator() as stub:
            return (await stub.StoreCredential(request, timeout=10)).credential

    async def register(
        self, agent_id: str = "site-a", keys: AgentKeys | None = None, *, replace: bool = False
    ) -> None:
        public = (keys or self.agent).public
        agent = operator_pb.Agent(
            agent_id=agent_id, signing_public_key=public.signing, sealing_public_key=public.sealing
        )
        async with self.operator() as stub:
            request = operator_pb.RegisterAgentRequest(agent=agent, replace=replace)
            await stub.RegisterAgent(request, timeout=10)

    async def issue(
        self, credential_id: str, agent_id: str = "site-a", operation: Operation.ValueType = BACKUP
    ) -> str:
        request = hub_pb.IssueLeaseRequest(
            credential_id=credential_id, agent_id=agent_id, operation=operation, subject_id="job 1"
        )
        async with self.hub() as stub:
            lease_id = (await stub.IssueLease(request, timeout=10)).lease_id
        self.issued[lease_id] = credential_id
        return lease_id

    async def redeem(self, lease_id: str, **changes: Any) -> Login:
        """As the agent does it, with changes. The hub has told it what the lease is of."""
        options: dict[str, Any] = {"agent_id": "site-a", "operation": BACKUP, "keys": self.agent, **changes}
        keys = options.pop("keys")
        options.setdefault("credential_id", self.issued.get(lease_id, NO_CREDENTIAL))
        return await redeem(self.paths.agents_socket, keys, lease_id=lease_id, **options)


def store_request(name: str | None = None, password: str = PASSWORD) -> operator_pb.StoreCredentialRequest:
    return operator_pb.StoreCredentialRequest(
        request_id=str(uuid.uuid4()),
        name=name or f"vcenter-{uuid.uuid4()}",
        secret=operator_pb.Secret(username=USERNAME, password=password, endpoint=ENDPOINT),
    )


@contextlib.contextmanager
def running(
    directory: Path, *options: str, telemetry_socket: Path | None = None, key_file: bool = True
) -> Iterator[Service]:
    """Starts the service in `directory`, with the key that is there or, unless told otherwise, a new one."""
    paths = CredentialsPaths(directory / "state", directory / "run")
    if key_file:
        create_key_file(paths.key_file)
    log = directory / "log"
    command = [sys.executable, "-m", "sendense_credentials.main"]
    command += ["--state", str(paths.state), "--run", str(paths.run), *options]
    if telemetry_socket:
        command += ["--telemetry-socket", str(telemetry_socket)]
    with log.open("ab") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "SENDENSE_LOG": "DEBUG"})
    try:
        asyncio.run(rpc.wait_healthy(paths.operator_socket, timeout_s=30, what="the credentials service"))
        yield Service(paths, process, log)
    finally:
        process.terminate()
        process.wait(30)


async def reason_of(call: Any) -> Reason.ValueType:
    """The reason with which a call fails."""
    return (await failure_of(call)).reason


async def failure_of(call: Any) -> SendenseError:
    """The error with which a call fails."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return SendenseError.from_rpc(error)
    except SendenseError as error:
        return error
    raise AssertionError(f"it did not fail: {answer}")
