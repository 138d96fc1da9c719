# SPDX-License-Identifier: Apache-2.0
"""New keys for a known site, and a site that is put out: what happens to its connections and its keys."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tests.integration.enrolment.kit import SITE, WITHIN_S, Centre
from tests.integration.tunnel.kit import until

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.config import load_config
from sendense_common.errors import SendenseError
from sendense_common.keys import load_agent_keys
from sendense_common.tunnel import Backoff, Tunnel, dial, keep_connected

pytestmark = pytest.mark.integration

CUT_WITHIN_S = 5.0


@contextlib.asynccontextmanager
async def an_agent_that_runs(centre: Centre) -> AsyncIterator[list[Tunnel]]:
    """Its tunnels, the newest last."""
    paths, stopping, tunnels = centre.agent(), asyncio.Event(), []

    @contextlib.asynccontextmanager
    async def up(tunnel: Tunnel) -> AsyncIterator[None]:
        await tunnel.publish(paths.grpc_socket)
        tunnels.append(tunnel)
        yield

    config = load_config(paths).tunnel(paths)
    task = asyncio.create_task(keep_connected(config, up, stopping, backoff=Backoff(refused_s=0.3)))
    try:
        await until(lambda: tunnels, "it is connected")
        yield tunnels
    finally:
        stopping.set()
        await task


async def test_old_keys_are_good_until_the_new_ones_are_approved_and_then_cut(centre: Centre):
    before = await centre.let_in()
    old_keys = load_agent_keys(centre.agent().lease_keys_file).public
    async with an_agent_that_runs(centre) as tunnels:
        shown = await centre.shows(await centre.invited(rotate=True))
        assert shown != before
        assert not tunnels[0].closed
        assert (await centre.listed())["fingerprint"] == before
        async with dial(load_config(centre.agent()).tunnel(centre.agent())):
            pass  # the old key still logs in
        await centre.approve(shown)
        async with asyncio.timeout(CUT_WITHIN_S):
            assert "revoked" in str(await tunnels[0].wait_closed())
        assert await asyncio.wait_for(centre.waiting[-1], WITHIN_S)
        # The agent that runs goes on with the new keys, by itself.
        await until(lambda: len(tunnels) > 1, "it is connected again", WITHIN_S)
    listed = await centre.listed()
    assert (listed["state"], listed["fingerprint"]) == ("approved", shown)
    new_keys = load_agent_keys(centre.agent().lease_keys_file).public
    assert new_keys != old_keys
    assert await centre.lease_keys() == {SITE: new_keys.sealing}


async def test_revoking_cuts_live_connections_and_the_keys_open_nothing_any_more(centre: Centre):
    await centre.let_in()
    config = load_config(centre.agent()).tunnel(centre.agent())
    async with an_agent_that_runs(centre) as tunnels, dial(config) as another:
        async with asyncio.timeout(CUT_WITHIN_S):
            await centre.revoke()
            assert "revoked" in str(await tunnels[0].wait_closed())
            assert "revoked" in str(await another.wait_closed())
        with pytest.raises(SendenseError) as refused:
            async with dial(config):
                pass
        assert refused.value.reason == Reason.REASON_TUNNEL_REFUSED
    assert await centre.lease_keys() == {}
    assert (await centre.listed())["state"] == "revoked"
    await centre.revoke()  # twice is once


async def test_a_key_that_is_revoked_while_the_news_cannot_be_pushed_is_cut_all_the_same(centre: Centre):
    await centre.let_in()
    async with an_agent_that_runs(centre) as tunnels:
        centre.workshop.exports.revoke_key = lambda fingerprint: None  # type: ignore[method-assign]
        async with asyncio.timeout(CUT_WITHIN_S):
            await centre.revoke()
            await tunnels[0].wait_closed()


async def test_a_revoked_site_is_let_in_again_with_new_keys_only(centre: Centre):
    first = await centre.let_in()
    old = load_config(centre.agent()).tunnel(centre.agent())
    old_key = old.private_key_file.read_bytes()
    await centre.revoke()
    second = await centre.let_in()
    assert second != first
    assert (await centre.listed())["state"] == "approved"
    kept = centre.directory / "old.key"
    kept.touch(0o600)
    kept.write_bytes(old_key)
    with pytest.raises(SendenseError):
        async with dial(
            load_config(centre.agent())
            .tunnel(centre.agent())
            .__class__(**{**vars(old), "private_key_file": kept})
        ):
            pass


async def test_a_site_that_has_keys_is_not_invited_and_one_without_gets_no_new_ones(centre: Centre):
    with pytest.raises(SendenseError) as unknown:
        await centre.invited(rotate=True)
    assert unknown.value.reason == Reason.REASON_SITE_NOT_FOUND
    await centre.let_in()
    with pytest.raises(SendenseError) as known:
        await centre.invited()
    assert known.value.reason == Reason.REASON_SITE_EXISTS
    await centre.revoke()
    with pytest.raises(SendenseError) as revoked:
        await centre.invited(rotate=True)
    assert revoked.value.reason == Reason.REASON_SITE_REVOKED


async def test_revoking_ends_an_invitation_that_waits(centre: Centre):
    await centre.let_in()
    shown = await centre.shows(await centre.invited(rotate=True))
    await centre.revoke()
    with pytest.raises(SendenseError) as gone:
        await centre.approve(shown)
    assert gone.value.reason == Reason.REASON_INVITATION_NOT_FOUND
    assert await centre.lease_keys() == {}
