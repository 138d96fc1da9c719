# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.credentials.kit import Service, running


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One process for the tests of a module, with the agent site-a."""
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    with running(directory) as started:
        asyncio.run(started.register())
        yield started
    shutil.rmtree(directory)
