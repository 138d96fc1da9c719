# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.credentials.kit import Service, running
from tests.integration.credentials.openbao import OpenBao, openbao


@pytest.fixture(scope="module")
def openbao_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """For the tests of a module; one that stops it starts it again."""
    with openbao(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One process for the tests of a module, with the agent site-a."""
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    with running(directory) as started:
        asyncio.run(started.register())
        yield started
    shutil.rmtree(directory)
