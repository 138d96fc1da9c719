# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every kind of test may use."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# A slow machine is no failure of what is tested.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A private directory with a short path: a unix socket's name may have only 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


# Whoever starts the tests in the background makes them ignore it, and what they start with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ORDER = ("unit", "integration", "e2e")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first; when several processes share the files, long files first, so that none is last."""

    def place(item: pytest.Item) -> int:
        found = [number for number, kind in enumerate(_ORDER) if item.get_closest_marker(kind)]
        return min(found, default=len(_ORDER))

    items.sort(key=place, reverse=hasattr(config, "workerinput"))
