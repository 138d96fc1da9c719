# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from tests.integration.lab.conftest import lab as lab  # noqa: PLC0414 - a fixture for this folder too
from tests.integration.lab.conftest import shared_lab as shared_lab  # noqa: PLC0414
from tests.integration.vsphere.kit import opened

from sendense_agent.vsphere import Session
from sendense_lab.client import LabClient


@pytest_asyncio.fixture(loop_scope="module")
async def session(lab: LabClient) -> AsyncIterator[Session]:
    """One login."""
    async with opened(lab) as made:
        yield made
