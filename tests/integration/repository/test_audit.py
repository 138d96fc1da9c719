# SPDX-License-Identifier: Apache-2.0
"""A sample of a chain says what the chain holds, at a cost that does not grow with it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.integration.repository.kit import BLOCK_BYTES, MACHINE, VCENTER, make_point, noise, patch

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository import AuditPolicy, LayerRef, PointDocument, Repository, open_repository, sample
from sendense_hub.repository.ledger import RECORD

pytestmark = pytest.mark.integration

KEY = 2000
CAPACITY = 8 * BLOCK_BYTES + 3 * 512
GRAIN = 65536
FULL = {0: noise(1, 3 * BLOCK_BYTES), 5 * BLOCK_BYTES: noise(2, BLOCK_BYTES), CAPACITY - 512: b"t" * 512}
CHANGED = {BLOCK_BYTES + GRAIN: noise(3, GRAIN), 5 * BLOCK_BYTES: bytes(BLOCK_BYTES)}
EVERYTHING = AuditPolicy(100.0)


async def chain(repository: Repository, run: Path) -> tuple[PointDocument, LayerRef]:
    first = await make_point(repository, run, {KEY: FULL}, capacities={KEY: CAPACITY})
    second = await make_point(repository, run, {KEY: CHANGED}, capacities={KEY: CAPACITY}, parent=first)
    directory = repository.directory_of(VCENTER, MACHINE, second.point_id)
    return second, LayerRef(directory, KEY, second.disk(KEY).layer_file, CAPACITY)


async def test_rule_27_a_sample_holds_the_digests_of_the_newest_view_and_its_zeroes(short_tmp: Path):
    repository = await open_repository("r", short_tmp / "r")
    _, layer = await chain(repository, short_tmp)
    image = patch(patch(bytearray(CAPACITY), FULL), CHANGED)
    drawn = await sample(repository, layer, EVERYTHING, 1, short_tmp / "a.sock")
    seen = 0
    kinds = set()
    for offset, length, kind, digest in RECORD.iter_unpack(drawn):
        part = bytes(image[offset : offset + length])
        assert offset == seen
        seen += length
        kinds.add(kind)
        if kind:
            assert digest == hashlib.sha256(part).digest()
        else:
            assert not any(part)
            assert digest == bytes(32)
    assert seen == CAPACITY
    assert kinds == {0, 1}
    assert not (short_tmp / "a.sock").exists()


async def test_a_chain_that_cannot_be_read_gives_no_sample_and_leaves_nothing(short_tmp: Path):
    repository = await open_repository("r", short_tmp / "r")
    _, layer = await chain(repository, short_tmp)
    (repository.root / layer.directory / layer.file).write_bytes(b"no layer")
    with pytest.raises(SendenseError) as refused:
        await sample(repository, layer, EVERYTHING, 1, short_tmp / "a.sock")
    assert refused.value.reason == Reason.REASON_EXPORT_FAILED
    assert not (short_tmp / "a.sock").exists()
