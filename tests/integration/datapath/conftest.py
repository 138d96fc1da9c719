# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.tunnel.kit import Hub, running_hub


@pytest.fixture
async def hub(short_tmp: Path) -> AsyncIterator[Hub]:
    async with running_hub(short_tmp) as running:
        yield running
