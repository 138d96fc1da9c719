# SPDX-License-Identifier: Apache-2.0
"""The process with its keys in a real OpenBao: started without it, cut off from it, and what is on disk."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from tests.integration.credentials.kit import PASSWORD, Service, failure_of, running, sendense_credentials
from tests.integration.credentials.openbao import OpenBao, openbao

import sendense.credentials.v1.key_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.key_service_pb2_grpc import KeyServiceStub
from sendense_common import rpc
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration


async def keys(service: Service) -> pb.ListKeysResponse:
    async with rpc.connect(service.paths.operator_socket) as channel:
        return await KeyServiceStub(channel).ListKeys(pb.ListKeysRequest(), timeout=30)


async def without_the_server(service: Service) -> None:
    error = await failure_of(service.store("vc"))
    assert error.reason == Reason.REASON_KEY_PROVIDER_UNAVAILABLE
    assert error.metadata == {}
    assert "does not answer" in error.message
    told = await keys(service)
    assert told.provider == "transit"
    assert SendenseError.from_failure(told.failure).reason == Reason.REASON_KEY_PROVIDER_UNAVAILABLE


async def in_use(service: Service, server: OpenBao) -> None:
    await service.register()
    stored = await service.store("vc")
    assert stored.key_id == "transit:transit/sendense:v1"
    lease = await service.issue(stored.credential_id)
    assert (await service.redeem(lease)).password == PASSWORD
    told = await keys(service)
    assert not told.HasField("failure")
    assert [(key.key_id, key.state) for key in told.keys] == [(stored.key_id, pb.KEY_STATE_ACTIVE)]
    lease = await service.issue(stored.credential_id)
    await asyncio.to_thread(server.stop)
    error = await failure_of(service.redeem(lease))
    assert error.reason == Reason.REASON_KEY_PROVIDER_UNAVAILABLE
    assert error.retryable
    await asyncio.to_thread(server.start)
    # Its lease is used up; that of the next attempt opens.
    assert (await service.redeem(await service.issue(stored.credential_id))).password == PASSWORD


def test_a_server_of_keys_may_come_late_and_go_and_nothing_is_kept_here(short_tmp: Path):
    with openbao(short_tmp / "bao") as server:
        role = server.role(short_tmp)
        server.stop()
        with running(short_tmp, *server.options(*role), key_file=False) as service:
            asyncio.run(without_the_server(service))
            server.start()
            asyncio.run(in_use(service, server))
            environment = Path(f"/proc/{service.process.pid}/environ").read_bytes()
        said = service.log.read_bytes()
        files = [file for file in service.paths.state.rglob("*") if file.is_file()]
        left = b"".join(file.read_bytes() for file in files)
        assert not service.paths.key_file.exists()
        assert b"logged in to" in said
        role_id, secret_id = ((short_tmp / name).read_bytes().strip() for name in ("role-id", "secret-id"))
        for text in (secret_id, role_id, PASSWORD.encode(), base64.b64encode(PASSWORD.encode())):
            assert text not in left + said + environment


def test_no_key_file_is_made_where_keys_are_elsewhere(short_tmp: Path):
    (short_tmp / "ca.pem").touch()
    made = sendense_credentials(
        "init-key", "--state", str(short_tmp / "state"), "--key-provider=transit",
        "--transit-address=https://127.0.0.1:1", f"--transit-ca-file={short_tmp / 'ca.pem'}",
        "--transit-token-file=/t",
    )  # fmt: skip
    assert made.returncode == 0
    assert "no key file is made" in made.stdout
    assert not (short_tmp / "state" / "kek.json").exists()
