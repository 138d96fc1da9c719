# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.agent.kit import Agent, running_agent


@pytest.fixture
async def agent(short_tmp: Path) -> AsyncIterator[Agent]:
    async with running_agent(short_tmp) as running:
        yield running
