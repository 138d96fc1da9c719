# SPDX-License-Identifier: Apache-2.0
"""Who is not known may enrol, and do nothing else: few at a time, not for long, in small messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import asyncssh
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.enrolment.kit import SITE, WITHIN_S, Centre
from tests.integration.enrolment.kit import centre as centre_in
from tests.integration.raw_http2 import raw_client
from tests.integration.tunnel.kit import until
from tests.integration.tunnel.test_refusals import (
    refuse_chosen_listen_path,
    refuse_climbing_name,
    refuse_direct_tcpip,
    refuse_foreign_socket,
    refuse_metadata_address,
    refuse_shell,
    refuse_subsystem,
    refuse_tcp_listen,
)

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import enrolment_service_pb2 as pb
from sendense.hub.v1 import invitation_service_pb2, site_service_pb2
from sendense.hub.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense_agent.control.enrolling import enrol
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.tunnel import (
    ENROLMENT_TARGET,
    ENROLMENT_USER,
    REVERSE_PATH,
    TunnelConfig,
    dial,
    ensure_key,
)
from sendense_hub.gateway.limits import Limits

pytestmark = pytest.mark.integration

ENROL = "/sendense.hub.v1.EnrolmentService/Enrol"


def stranger(centre: Centre, name: str = "stranger", **settings: object) -> TunnelConfig:
    key = centre.directory / f"{name}.key"
    ensure_key(key, name)
    user = str(settings.get("user", ENROLMENT_USER))
    return TunnelConfig("127.0.0.1", centre.port, user, key, centre.host_key)


async def connect(centre: Centre) -> asyncssh.SSHClientConnection:
    config = stranger(centre)
    return await asyncssh.connect(
        "127.0.0.1",
        centre.port,
        username=config.agent_id,
        client_keys=[str(config.private_key_file)],
        known_hosts=([asyncssh.import_public_key(centre.host_key)], [], []),
        config=None,
        agent_path=None,
    )


async def refuse_agents_listen(conn: asyncssh.SSHClientConnection) -> None:
    await conn.forward_remote_path(REVERSE_PATH, "/nowhere")


async def refuse_credentials(conn: asyncssh.SSHClientConnection) -> None:
    await conn.open_unix_connection("credentials")


async def refuse_an_export(conn: asyncssh.SSHClientConnection) -> None:
    await conn.open_unix_connection("nbd/0123456789ab-1-2000")


async def test_a_stranger_opens_nothing_but_the_enrolment_and_each_try_is_logged(
    centre: Centre, caplog: pytest.LogCaptureFixture
):
    attempts: list[Callable[[asyncssh.SSHClientConnection], Awaitable[None]]] = [
        refuse_shell, refuse_subsystem, refuse_direct_tcpip, refuse_metadata_address, refuse_foreign_socket,
        refuse_climbing_name, refuse_tcp_listen, refuse_chosen_listen_path, refuse_agents_listen,
        refuse_credentials, refuse_an_export,
    ]  # fmt: skip
    async with await connect(centre) as conn:
        for attempt in attempts:
            caplog.clear()
            with (
                caplog.at_level(logging.WARNING, "sendense_hub.gateway"),
                pytest.raises((asyncssh.ChannelOpenError, asyncssh.ChannelListenError)),
            ):
                await attempt(conn)
            refusals = [each.getMessage() for each in caplog.records if "refused" in each.getMessage()]
            assert refusals, attempt
            assert all("key=SHA256:" in refusal for refusal in refusals)
        assert not conn.is_closed()
    assert list(centre.paths.agents_dir.iterdir()) == []


async def test_a_known_agent_cannot_open_the_enrolment(centre: Centre):
    await centre.let_in()
    known = TunnelConfig(
        "127.0.0.1", centre.port, SITE, centre.agent().state / "ssh_ed25519_key", centre.host_key
    )
    async with (
        dial(known) as tunnel,
        tunnel.forward(ENROLMENT_TARGET, centre.directory / "e.sock") as forward,
    ):
        _, writer = await asyncio.open_unix_connection(str(centre.directory / "e.sock"))
        await until(lambda: forward.refusal, "the refusal")
        assert forward.refusal is not None
        assert forward.refusal.reason == Reason.REASON_TUNNEL_REFUSED
        writer.close()


async def test_an_unknown_key_cannot_log_in_under_the_name_of_a_site(centre: Centre):
    with pytest.raises(SendenseError) as refused:
        async with dial(stranger(centre, user=SITE)):
            pass
    assert refused.value.reason == Reason.REASON_TUNNEL_REFUSED


async def test_nothing_but_the_enrolment_is_served_there_and_only_in_small_messages(centre: Centre):
    local = centre.directory / "e.sock"
    async with (
        dial(stranger(centre)) as tunnel,
        tunnel.forward(ENROLMENT_TARGET, local),
        rpc.connect(local) as ch,
    ):

        async def code(call: Awaitable[object]) -> grpc.StatusCode:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await asyncio.wait_for(call, WITHIN_S)
            return error.value.code()

        health = health_pb2_grpc.HealthStub(ch).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert await code(health) == grpc.StatusCode.UNIMPLEMENTED
        sites = SiteServiceStub(ch).ListSites(site_service_pb2.ListSitesRequest())
        assert await code(sites) == grpc.StatusCode.UNIMPLEMENTED
        stub = EnrolmentServiceStub(ch)
        assert await code(stub.Enrol(pb.EnrolRequest(code="x" * 5000))) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await code(stub.Enrol(pb.EnrolRequest())) == grpc.StatusCode.INVALID_ARGUMENT
        weak = invitation_service_pb2.EnrolmentKeys(
            ssh_public_key=" ".join(centre.host_key.split()[:2]),
            signing_public_key=bytes(32),
            sealing_public_key=bytes(32),
        )
        request = pb.EnrolRequest(site_name=SITE, code="0" * 12, keys=weak)
        assert await code(stub.Enrol(request)) == grpc.StatusCode.INVALID_ARGUMENT


async def test_strangers_are_few_at_a_time_and_not_there_for_long(short_tmp: Path):
    async with centre_in(short_tmp, Limits(strangers=4, stranger_for_s=3.0)) as centre:
        async with dial(stranger(centre, "a")) as first, dial(stranger(centre, "b")):
            async with dial(stranger(centre, "c")) as third:  # from one address, half of all
                lost = await asyncio.wait_for(third.wait_closed(), WITHIN_S)
                assert "too many" in str(lost)
            assert "come again" in str(await asyncio.wait_for(first.wait_closed(), WITHIN_S))
        async with dial(stranger(centre, "c")) as again:
            await asyncio.sleep(0.1)
            assert not again.closed


async def test_an_agent_that_waits_longer_than_a_connection_lasts_comes_again(short_tmp: Path):
    async with centre_in(short_tmp, Limits(stranger_for_s=0.3)) as centre:
        shown = await centre.shows(await centre.invited())
        await asyncio.sleep(1.0)  # some connections long
        assert not centre.waiting[0].done()
        await centre.approve(shown)
        assert await asyncio.wait_for(centre.waiting[0], WITHIN_S)


async def test_one_stranger_does_not_keep_others_from_enrolling(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
):
    """It begins as many calls as it can, and sends no request."""
    monkeypatch.setattr(rpc, "STRANGERS", replace(rpc.STRANGERS, request_within_s=600.0, call_within_s=600.0))
    async with centre_in(short_tmp, Limits()) as centre:
        local = centre.directory / "e.sock"
        async with dial(stranger(centre)) as tunnel, tunnel.forward(ENROLMENT_TARGET, local):
            async with raw_client(local) as raw:
                raw.begin()
                for _ in range(100):
                    raw.call(ENROL)
                await raw.sent()
                await asyncio.wait_for(raw.refused(99), WITHIN_S)
                said: list[str] = []
                waiting = asyncio.create_task(enrol(centre.agent(), await centre.invited(), said.append))
                centre.waiting.append(waiting)
                await until(lambda: said or waiting.done(), "a word")
                assert "is the right one" in said[0]


async def test_an_agent_that_finds_no_place_goes_on_trying(short_tmp: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rpc, "STRANGERS", replace(rpc.STRANGERS, calls=1, request_within_s=4.0))
    async with centre_in(short_tmp, Limits()) as centre:
        local = centre.directory / "e.sock"
        async with dial(stranger(centre)) as tunnel, tunnel.forward(ENROLMENT_TARGET, local):
            async with raw_client(local) as raw:
                raw.begin()
                raw.call(ENROL)
                raw.call(ENROL)
                await raw.sent()
                await asyncio.wait_for(raw.refused(1), WITHIN_S)  # so the first has the only place
                said: list[str] = []
                waiting = asyncio.create_task(enrol(centre.agent(), await centre.invited(), said.append))
                centre.waiting.append(waiting)
                await until(lambda: len(said) == 2 or waiting.done(), "two words")
                assert "not yet" in said[0]
                assert "is the right one" in said[1]
