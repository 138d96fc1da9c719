# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.integration.lab.kit import connected, reset

from sendense_lab.client import LabClient


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_lab() -> AsyncIterator[LabClient]:
    """One simulated vCenter for a module's tests; each test has VMs of its own."""
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    async with LabClient.start(directory) as running:
        yield running
    shutil.rmtree(directory)


@pytest_asyncio.fixture(loop_scope="module")
async def lab(shared_lab: LabClient) -> LabClient:
    await reset(shared_lab)
    return shared_lab


@pytest.fixture
def instance(lab: LabClient) -> Iterator[Any]:
    with connected(lab) as service:
        yield service
