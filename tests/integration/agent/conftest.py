# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.agent.kit import Agent, running_agent
from tests.integration.agent.site_kit import Site, running_site
from tests.integration.credentials.kit import Service, running


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


@pytest.fixture
async def site(short_tmp: Path, credentials: Service) -> AsyncIterator[Site]:
    async with running_site(short_tmp, credentials) as serving:
        yield serving
