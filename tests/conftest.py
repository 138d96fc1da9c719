# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every kind of test may use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A private directory with a short path: a unix socket's name may have only 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


_ORDER = ("unit", "integration", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; and installations that whole modules share start after tests that count processes."""

    def place(item: pytest.Item) -> int:
        found = [number for number, kind in enumerate(_ORDER) if item.get_closest_marker(kind)]
        return min(found, default=len(_ORDER))

    items.sort(key=place)
