# SPDX-License-Identifier: Apache-2.0
"""One installation for all scenarios; several of them play at once, for each waits most of its time."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.kit import World, world
from tests.scenarios.stage import Played, play

_AT_ONCE = 4


@pytest.fixture(scope="session")
def scenario_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # All of each disk is audited: what vSphere says of them is right, unless a scenario says otherwise.
    with world(tmp_path_factory.mktemp("scenarios"), options=("--cbt-audit-percent", "100")) as made:
        yield made


@pytest.fixture(scope="session")
def played(request: pytest.FixtureRequest, scenario_world: World) -> dict[str, Played | BaseException]:
    """What came of each scenario that is asked for in this run."""
    names = [
        str(item.callspec.params["scenario"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "played" in item.fixturenames
    ]

    async def all_of_them() -> list[Played | BaseException]:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(name: str, directory: Path) -> Played:
            async with turns:
                return await play(scenario_world, name, directory)

        with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as directory:
            return await asyncio.gather(
                *(one(name, Path(directory) / name) for name in names), return_exceptions=True
            )

    return dict(zip(names, asyncio.run(all_of_them()), strict=True))
