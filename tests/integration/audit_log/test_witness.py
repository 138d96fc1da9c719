# SPDX-License-Identifier: Apache-2.0
"""Heads in a database: a log that was cut or made anew contradicts them, until a person accepts it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from sendense_common import audit_log
from sendense_common.audit_log import Anchor, Checker, Problem, Record, SeenHead, Witness
from sendense_hub.catalog import open_catalog
from sendense_hub.catalog.audit_heads import AuditHeads

pytestmark = pytest.mark.integration


async def life(state: Path, *acts: str) -> tuple[str, Sequence[SeenHead]]:
    """A service that starts, looks at its log, does something, ends: what it found, and what it has seen."""
    async with (
        audit_log.opened(state / "log", "hub") as log,
        open_catalog(f"sqlite:///{state / 'catalog.sqlite'}") as catalog,
    ):
        witness = Witness(log, AuditHeads(catalog))
        found = await witness.look_at_own()
        for act in acts:
            await audit_log.record(act)
        await witness.look_at_own()
        return found, await witness.heads()


def problems(state: Path, seen: Sequence[SeenHead]) -> list[tuple[int, Problem]]:
    checker = Checker(Anchor("the catalog", each.sequence, each.hash) for each in seen)
    for entry in audit_log.read(state / "log"):
        checker.take(entry)
    return [(finding.sequence, finding.problem) for finding in checker.findings()]


async def test_a_log_that_goes_on_moves_its_head(tmp_path: Path) -> None:
    for sequence in (2, 5, 8):  # each life begins and ends with a record, and the last one comes too late
        found, (seen,) = await life(tmp_path, "job.cancel")
        assert (found, seen.sequence, seen.contradiction) == ("", sequence, "")
        assert problems(tmp_path, [seen]) == []


async def test_a_log_that_grows_while_several_look_at_it_contradicts_nothing(tmp_path: Path) -> None:
    async with (
        audit_log.opened(tmp_path / "log", "hub") as log,
        open_catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}") as catalog,
    ):
        witness = Witness(log, AuditHeads(catalog))

        async def act_and_look() -> str:
            await audit_log.record("job.cancel")
            return await witness.look_at_own()

        assert {*await asyncio.gather(*(act_and_look() for _ in range(20)))} == {""}
        assert [(each.log, each.sequence) for each in await witness.heads()] == [("hub", 21)]


@pytest.mark.parametrize("how", ["cut", "made anew"])
async def test_a_log_that_does_not_go_on_keeps_the_proof_and_says_so_once(tmp_path: Path, how: str) -> None:
    _, (before,) = await life(tmp_path, "job.cancel", "job.cancel")
    (segment,) = (tmp_path / "log").glob("*.jsonl")
    if how == "cut":
        segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:2]))
    else:
        shutil.rmtree(tmp_path / "log")
    for _ in range(2):
        found, (seen,) = await life(tmp_path)
        assert found == seen.contradiction != ""
        assert (seen.sequence, seen.hash) == (before.sequence, before.hash)
    assert problems(tmp_path, [seen]) == [(before.sequence, Problem.CHANGED)]
    records = [entry for entry in audit_log.read(tmp_path / "log") if isinstance(entry, Record)]
    assert [each.subject for each in records if each.act == "log.contradicts"] == ["hub"]


async def test_what_a_person_accepts_counts_from_then_on_and_stays_recorded(tmp_path: Path) -> None:
    _, (before,) = await life(tmp_path, "job.cancel")
    shutil.rmtree(tmp_path / "log")
    await life(tmp_path)
    async with (
        audit_log.opened(tmp_path / "log", "hub") as log,
        open_catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}") as catalog,
    ):
        witness = Witness(log, AuditHeads(catalog))
        assert await witness.accept("hub")
        assert not await witness.accept("hub")
        assert await witness.look_at_own() == ""
        seen = await witness.heads()
    assert problems(tmp_path, seen) == []
    records = [entry for entry in audit_log.read(tmp_path / "log") if isinstance(entry, Record)]
    (accepted,) = (each for each in records if each.act == "log.accept")
    assert accepted.facts["seen_hash"] == before.hash.hex()
