# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.hub.kit import Hub, World, hub_of
from tests.integration.hub.kit import world as world_in


@pytest.fixture
async def world(short_tmp: Path) -> AsyncIterator[World]:
    """Everything around a hub."""
    async with world_in(short_tmp) as made:
        yield made


@pytest.fixture
async def hub(world: World) -> AsyncIterator[Hub]:
    """A hub in this process."""
    async with hub_of(world) as made:
        yield made
