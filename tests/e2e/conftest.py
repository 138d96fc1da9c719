# SPDX-License-Identifier: Apache-2.0
"""One installation for all tests that do not stop it; a fresh one for those that do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.kit import Lab, World, world


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("shared")) as made:
        yield made


@pytest.fixture(scope="session")
def shared_lab(shared_world: World) -> Lab:
    return shared_world.lab()


@pytest.fixture
def fresh_world(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made
