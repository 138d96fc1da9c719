# SPDX-License-Identifier: Apache-2.0
"""How many calls each site may make at once."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sendense_common import site_name
from sendense_common.rpc._shares import Shares, TooManyError

pytestmark = pytest.mark.unit


async def taken(stack: contextlib.AsyncExitStack, shares: Shares, site: str, count: int = 1) -> None:
    for _ in range(count):
        await stack.enter_async_context(shares.place(site))


async def one(shares: Shares, site: str) -> None:
    async with shares.place(site):
        pass


async def test_a_site_whose_share_is_used_up_is_refused_and_others_are_not():
    shares = Shares(calls=8, calls_per_site=2, wait_s=0.0)
    async with contextlib.AsyncExitStack() as stack:
        await taken(stack, shares, "paris", 2)
        with pytest.raises(TooManyError, match="site paris makes 2 calls at once"):
            await one(shares, "paris")
        await one(shares, "rome")
    await one(shares, "paris")


async def test_a_call_more_waits_for_one_of_its_own_site_to_end():
    shares = Shares(calls=8, calls_per_site=1, wait_s=60.0)
    async with contextlib.AsyncExitStack() as stack:
        await taken(stack, shares, "paris")
        waiting = asyncio.create_task(one(shares, "paris"))
        await one(shares, "rome")
        assert not waiting.done()
    await asyncio.wait_for(waiting, 60)


async def test_all_together_have_an_end_and_the_installations_own_processes_no_share():
    shares = Shares(calls=5, calls_per_site=2, wait_s=0.0)
    async with contextlib.AsyncExitStack() as stack:
        await taken(stack, shares, "paris", 2)
        await taken(stack, shares, "", 3)
        for site in ("rome", ""):
            with pytest.raises(TooManyError, match="5 calls at once"):
                await one(shares, site)
    await one(shares, "rome")


async def test_nothing_is_kept_of_a_site_that_makes_no_call():
    shares = Shares(calls=4, calls_per_site=1, wait_s=60.0)
    for number in range(100):
        await one(shares, f"site-{number}")
    async with contextlib.AsyncExitStack() as stack:
        await taken(stack, shares, "paris")
        waiting = asyncio.create_task(one(shares, "paris"))
        await asyncio.sleep(0)
        assert shares.sites_count == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert shares.sites_count == 0
    await one(shares, "paris")


@pytest.mark.parametrize(
    ("peer", "site"),
    [
        ("unix-abstract:sendense/site/paris-2:0f", "paris-2"),
        ("unix:", ""),
        ("unix:/sendense/site/paris:0f", ""),
        ("unix-abstract:sendense/site/paris", ""),
        ("unix-abstract:sendense/site/..:0f", ""),
        ("unix-abstract:else/sendense/site/paris:0f", ""),
        ("ipv4:127.0.0.1:1", ""),
    ],
)
def test_a_site_is_known_by_the_name_that_its_gateway_gave_the_socket(peer: str, site: str):
    assert site_name.of_peer(peer) == site


def test_a_socket_is_bound_to_its_sites_name():
    with site_name.bound("a" * 63) as first, site_name.bound("a" * 63) as second:
        names = first.getsockname(), second.getsockname()
        assert names[0] != names[1]
        assert [site_name.of_address(name) for name in names] == ["a" * 63] * 2
    assert site_name.of_address("") == ""
