# SPDX-License-Identifier: Apache-2.0
"""The order of a commit: what a crash at any moment of it leaves is no point, or a whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.repository.kit import BLOCK_BYTES, make_point, noise

from sendense_hub.repository import PointWriter, durable, open_repository

pytestmark = pytest.mark.integration


async def test_rule_04_the_mark_with_the_change_ids_comes_after_stopped_exports_and_synced_layers(
    tmp_path: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = await open_repository("default", tmp_path / "repository")
    steps: list[str] = []
    writers: list[PointWriter] = []
    sync_file, write_file, commit = durable.sync_file, durable.write_file, PointWriter.commit

    def note(step: str) -> None:
        running = sum(not export.exited for writer in writers for export in writer.exports)
        steps.append(f"{step}, {running} exports")

    def told_sync(path: Path) -> None:
        if writers and path.suffix == ".qcow2":  # from the commit on
            note(f"sync {path.name}")
        sync_file(path)

    def told_write(path: Path, content: bytes) -> None:
        note(f"write {path.name}")
        write_file(path, content)

    async def told_commit(writer: PointWriter, document):
        writers.append(writer)
        note("commit")
        return await commit(writer, document)

    monkeypatch.setattr(durable, "sync_file", told_sync)
    monkeypatch.setattr(durable, "write_file", told_write)
    monkeypatch.setattr(PointWriter, "commit", told_commit)
    data = {0: noise(1, BLOCK_BYTES)}
    await make_point(
        repository, short_tmp, {2000: data, 2001: data}, capacities={2000: BLOCK_BYTES, 2001: BLOCK_BYTES}
    )
    assert steps == [
        "commit, 2 exports",
        "sync disk-2000.qcow2, 0 exports",
        "sync disk-2001.qcow2, 0 exports",
        "write point.json, 0 exports",
    ]
