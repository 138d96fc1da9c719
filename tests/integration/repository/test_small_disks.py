# SPDX-License-Identifier: Apache-2.0
"""Disks that are smaller than what everything else is cut into."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from tests.integration.repository.kit import BLOCK_BYTES, make_point, noise

from sendense_hub.repository import open_repository, verify_point

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("capacity", [512, 65536 + 512, BLOCK_BYTES, BLOCK_BYTES + 512])
async def test_a_disk_of_a_block_or_less_can_be_verified(
    tmp_path: Path, short_tmp: Path, capacity: int
) -> None:
    repository = await open_repository("default", tmp_path / "repository")
    data = noise(capacity, capacity)
    point = await make_point(repository, short_tmp, {2000: {0: data}}, capacities={2000: capacity})
    async with contextlib.aclosing(verify_point(repository, point, short_tmp)) as reports:
        digests = [report.sha256 async for report in reports]
    assert digests[-1] == hashlib.sha256(data).digest()
