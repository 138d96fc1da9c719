# SPDX-License-Identifier: Apache-2.0
"""A disk beside its previous point, through the real tunnel: only what differs is stored."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.datapath.kit import Copied, as_raw, copy, nbdkit, order
from tests.integration.repository.kit import BLOCK_BYTES, MACHINE, VCENTER, make_point, noise, patch
from tests.integration.tunnel.kit import Hub

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.extents import Extents
from sendense_common.errors import SendenseError
from sendense_hub.repository import LayerRef, PointDocument, PointWriter, Repository, open_repository

pytestmark = pytest.mark.integration

KEY = 2000
CAPACITY = 8 * BLOCK_BYTES + 3 * 512
GRAIN = 65536
FULL = {0: noise(1, 3 * BLOCK_BYTES), 5 * BLOCK_BYTES: noise(2, BLOCK_BYTES), CAPACITY - 512: b"t" * 512}
# Each takes a part of a record's bytes away: the rest has no digest in any ledger.
CHANGED = {BLOCK_BYTES + GRAIN: noise(3, GRAIN), 5 * BLOCK_BYTES: bytes(GRAIN)}


class Chain:
    """Two points of one disk, and a third that is written."""

    def __init__(self, hub: Hub, directory: Path, repository: Repository, newest: PointDocument) -> None:
        self._hub = hub
        self._directory = directory
        self._repository = repository
        self.newest = newest
        self.image = patch(patch(bytearray(CAPACITY), FULL), CHANGED)

    @contextlib.asynccontextmanager
    async def writer(self) -> AsyncIterator[PointWriter]:
        writer = await PointWriter.begin(self._repository, VCENTER, MACHINE, str(uuid.uuid4()))
        try:
            yield writer
        finally:
            await writer.discard()

    async def compare(self, now: bytes, in_use: Extents | None = None) -> tuple[Copied, bytes]:
        """What the mover said of a disk, and what the new layer shows."""
        (self._directory / "image").write_bytes(now)
        directory = self._repository.directory_of(VCENTER, MACHINE, self.newest.point_id)
        parent = LayerRef(directory, KEY, self.newest.disk(KEY).layer_file, CAPACITY)
        async with self.writer() as writer:
            layer = await writer.create_layer(KEY, CAPACITY, parent)
            for name, opened in (
                ("d1", await writer.open_digests(parent, "d1", self._directory / "d1")),
                ("e1", await writer.open_export(layer, "e1", self._directory / "e1", 2)),
            ):
                self._hub.authorization.targets[f"nbd/{name}"] = opened.socket
            source_file = str(self._directory / "image")
            async with nbdkit(self._directory / "s", CAPACITY, "--readonly", "file", source_file) as source:
                said = await copy(
                    order(
                        self._hub, self._directory, source, "e1",
                        write_zeroes=True, digests_export_name="d1", read=in_use or Extents.whole(CAPACITY),
                    )
                )  # fmt: skip
            for export in writer.exports:
                await export.stop()
            return said, await as_raw(self._repository.root / layer.directory / layer.file)


@pytest.fixture
async def chain(hub: Hub, short_tmp: Path) -> Chain:
    repository = await open_repository("r", short_tmp / "r")
    first = await make_point(repository, short_tmp, {KEY: FULL}, capacities={KEY: CAPACITY})
    second = await make_point(repository, short_tmp, {KEY: CHANGED}, capacities={KEY: CAPACITY}, parent=first)
    return Chain(hub, short_tmp, repository, second)


async def test_a_disk_without_a_change_is_read_and_nothing_is_sent_or_stored(chain: Chain):
    said, shown = await chain.compare(bytes(chain.image))
    assert shown == chain.image
    assert said.records == []
    assert said.done is not None
    counted = said.done.progress
    assert counted.read_bytes == CAPACITY
    assert counted.copied_bytes == 0
    assert counted.wire_bytes < 32 * 1024


async def test_rule_28_only_records_that_differ_are_stored_and_the_disk_is_identical(chain: Chain):
    now = bytearray(chain.image)
    now[2 * BLOCK_BYTES + 5] ^= 1  # in data with a digest of a ledger
    now[BLOCK_BYTES + 5] ^= 1  # in data whose digest the hub had to make
    now[4 * BLOCK_BYTES] = 9  # in what was zeroes
    now[0:BLOCK_BYTES] = bytes(BLOCK_BYTES)  # data that is zeroes now
    said, shown = await chain.compare(bytes(now))
    assert shown == now
    said.check_digests(bytes(now))
    written = Extents(sorted((each.offset_bytes, each.length_bytes) for each in said.records))
    assert list(written) == [
        (0, BLOCK_BYTES + GRAIN), (2 * BLOCK_BYTES, BLOCK_BYTES), (4 * BLOCK_BYTES, GRAIN)
    ]  # fmt: skip


async def test_rule_28_what_is_not_in_use_any_more_is_zeroes_whatever_is_read_there(chain: Chain):
    in_use = Extents([(GRAIN, BLOCK_BYTES), (4 * BLOCK_BYTES, BLOCK_BYTES), (CAPACITY - 512, 512)])
    now = bytearray(CAPACITY)
    for offset, length in in_use:
        now[offset : offset + length] = chain.image[offset : offset + length]
    said, shown = await chain.compare(bytes(chain.image), in_use)
    assert shown == now
    said.check_digests(bytes(now))
    assert said.done is not None
    assert said.done.progress.read_bytes < 4 * BLOCK_BYTES


async def test_rule_28_a_ledger_that_somebody_changed_is_not_believed(chain: Chain, short_tmp: Path):
    (ledger,) = (short_tmp / "r").glob(f"*/*/{chain.newest.point_id}/*.ledger")
    content = bytearray(ledger.read_bytes())
    content[-1] ^= 1
    ledger.write_bytes(content)
    with pytest.raises(SendenseError, match="not the one that was committed") as refused:
        await chain.compare(bytes(chain.image))
    assert refused.value.reason == Reason.REASON_POINT_CORRUPT
    # Nothing of the third point is left.
    assert len(list((short_tmp / "r").glob("*/*/*"))) == 2
