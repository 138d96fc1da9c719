# SPDX-License-Identifier: Apache-2.0
"""A disk of 5 TiB with 300 MiB in it: right to the last sector, and nothing read that holds nothing."""

from __future__ import annotations

import pytest
from tests.bench.big_disks import (
    CHANGED_EXTENTS,
    EXTENT_BYTES,
    EXTENTS,
    ODD_TAIL_BYTES,
    TIB,
    change,
    fill,
    layer_of,
    same_by_extents,
)
from tests.e2e.kit import MIB, Lab, World

pytestmark = pytest.mark.e2e

_CAPACITY = 5 * TIB + ODD_TAIL_BYTES
_GRANULE = 64 * 1024


def test_ff26_a_full_and_an_incremental_of_5_tib_read_only_what_holds_data(
    shared_world: World, shared_lab: Lab
) -> None:
    lab, name = shared_lab, "five-tib"
    (disk,) = lab.add_vm(name, [_CAPACITY]).disks
    fill(lab, name, disk, _CAPACITY)
    full = shared_world.back_up(name)
    layer = layer_of(shared_world, full, disk)
    assert same_by_extents(layer, lab.newest_frozen(name, disk), _CAPACITY)
    in_use = EXTENTS * EXTENT_BYTES
    slack = EXTENTS * 2 * _GRANULE
    assert in_use <= int(full["disks"][0]["read_bytes"]) <= in_use + slack
    assert layer.stat().st_blocks * 512 <= in_use + slack + 32 * MIB

    change(lab, name, disk, _CAPACITY)
    incremental = shared_world.back_up(name)
    assert incremental["disks"][0]["mode"] == "incremental"
    layer = layer_of(shared_world, incremental, disk)
    frozen = lab.newest_frozen(name, disk)
    assert same_by_extents(layer, frozen, _CAPACITY)
    changed = CHANGED_EXTENTS * MIB + 512
    assert changed <= int(incremental["disks"][0]["read_bytes"]) <= changed + 4 * CHANGED_EXTENTS * _GRANULE
    with frozen.open("r+b") as file:  # a comparison by extents sees one byte, also at the very end
        file.seek(_CAPACITY - 1)
        last = file.read(1)
        file.seek(_CAPACITY - 1)
        file.write(bytes([last[0] ^ 1]))
    assert not same_by_extents(layer, frozen, _CAPACITY)
    shared_world.assert_nothing_left((lab, name))
