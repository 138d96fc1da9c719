# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.agent.kit import Agent, running_agent
from tests.integration.agent.site_kit import Site, running_site
from tests.integration.credentials.kit import PASSWORD, USERNAME, Service, running

from sendense_lab.client import LabClient


@pytest.fixture
async def agent(short_tmp: Path) -> AsyncIterator[Agent]:
    async with running_agent(short_tmp) as serving:
        yield serving


@pytest.fixture(scope="module")
def credentials() -> Iterator[Service]:
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    with running(directory) as service:
        yield service
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def lab() -> Iterator[LabClient]:
    """A simulated vCenter for all tests of a module; it runs as long as a loop in a thread of its own."""
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = contextlib.AsyncExitStack()
    starting = stack.enter_async_context(LabClient.start(directory, username=USERNAME, password=PASSWORD))
    try:
        yield asyncio.run_coroutine_threadsafe(starting, loop).result(60)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        shutil.rmtree(directory)


@pytest.fixture
async def site(short_tmp: Path, credentials: Service, lab: LabClient) -> AsyncIterator[Site]:
    async with running_site(short_tmp, credentials, lab) as serving:
        yield serving
