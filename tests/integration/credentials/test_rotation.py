# SPDX-License-Identifier: Apache-2.0
"""A rotation of the key-encryption key: stopped at each step, and while everything else goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.integration.credentials.kit import Service, failure_of, running
from tests.integration.credentials.rooms import opened, secret

import sendense.credentials.v1.key_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.key_service_pb2_grpc import KeyServiceStub
from sendense_common import audit_log, rpc
from sendense_common.errors import SendenseError
from sendense_common.private_file import replace_private_file
from sendense_credentials.catalog import Catalog, credentials
from sendense_credentials.domain.credential import Envelope
from sendense_credentials.domain.key import KeyState
from sendense_credentials.vault import (
    CredentialVault,
    create_key_file,
    key_file,
)

pytestmark = pytest.mark.integration

RECORDS = 3
T = TypeVar("T")


async def filled(directory: Path) -> Path:
    """Records under the first key."""
    create_key_file(directory / "kek.json")
    async with opened(directory) as rooms:
        for number in range(RECORDS):
            await rooms.store(f"vc-{number}")
    return directory


class KilledError(Exception):
    """Stands for the end of the process."""


class Steps:
    """Everything that reaches the disk, in order; the process ends before or after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, killed_at: float | None) -> None:
        self.count = 0
        self._killed_at = killed_at
        run, replace = Catalog.run, replace_private_file

        async def committed(catalog: Catalog, transaction: Callable[[Any], Any]) -> Any:
            self._step(-0.5)
            answer = await run(catalog, transaction)
            self._step(0)
            return answer

        def replaced(path: Path, data: bytes) -> None:
            self._step(-0.5)
            replace(path, data)
            self._step(0)

        monkeypatch.setattr(Catalog, "run", committed)
        monkeypatch.setattr(key_file, "replace_private_file", replaced)

    def _step(self, moment: float) -> None:
        self.count += moment == 0
        if self._killed_at is not None and self.count + (0.5 if moment else 0) == self._killed_at:
            raise KilledError


async def rotate_until(directory: Path, killed_at: float | None) -> int:
    """A whole rotation, or as much of it as there is before the kill; how many steps it has."""
    async with opened(directory) as rooms:
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, killed_at)
            with contextlib.suppress(KilledError):
                await rooms.key_vault.rotate()
                await rooms.rewrapping.once()
                assert killed_at is None, "it was not killed"
            return steps.count


async def test_a_rotation_that_is_killed_at_any_step_is_gone_on_with_and_everything_opens_at_all_times(
    tmp_path: Path,
):
    first = await filled(tmp_path / "first")
    whole = await rotate_until(shutil.copytree(first, tmp_path / "whole"), None)
    assert whole >= 2 + 2 * RECORDS
    expected = None
    for moment in (step / 2 for step in range(1, 2 * whole + 1)):
        directory = shutil.copytree(first, tmp_path / f"killed-{moment}")
        await rotate_until(directory, moment)
        async with opened(directory) as rooms:
            texts = await rooms.texts()
            expected = expected or texts
            assert texts == expected, f"after step {moment}"
            in_file = {*json.loads((directory / "kek.json").read_text())["keys"]}
            assert await rooms.key_ids() <= in_file
            # The next start alone finishes it.
            await rooms.rewrapping.once()
            active = await rooms.keys.active.active_key_id()
            assert await rooms.key_ids() == {active}
            assert await rooms.texts() == expected
            assert len(in_file) <= 2
    assert expected is not None
    assert len(expected) == RECORDS


class HeldWrite:
    """The next replacement of the key file waits, in its thread, until it is let go; later ones do not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun, self._let_go = threading.Event(), threading.Event()
        replace = replace_private_file

        def held(path: Path, data: bytes) -> None:
            if not self._begun.is_set():
                self._begun.set()
                assert self._let_go.wait(60)
            replace(path, data)

        monkeypatch.setattr(key_file, "replace_private_file", held)

    async def cancel_within(self, work: Coroutine[Any, Any, Any], then: Coroutine[Any, Any, T]) -> T:
        """Cancels `work` while the file is written, begins `then`, lets the write end; what `then` gave."""
        first = asyncio.create_task(work)
        assert await asyncio.to_thread(self._begun.wait, 60)
        first.cancel()
        second = asyncio.create_task(then)
        await asyncio.wait({second}, timeout=0.3)  # as far as it gets: it should wait for the first
        self._let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second


async def test_a_rotation_that_is_cancelled_while_it_writes_loses_no_key_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await filled(tmp_path)
    async with opened(tmp_path) as rooms, audit_log.opened(tmp_path / "log", "credentials"):
        texts, write = await rooms.texts(), HeldWrite(monkeypatch)
        second, new = await write.cancel_within(rooms.key_vault.rotate(), rooms.key_vault.rotate())
        assert not new, "the cancelled one had made it"
        await rooms.rewrapping.once()
    async with opened(tmp_path) as again:
        assert await again.texts() == texts
        assert await again.key_ids() == {second} == {await again.keys.active.active_key_id()}
    acts = [each for each in audit_log.read(tmp_path / "log") if isinstance(each, audit_log.Record)]
    made = [each for each in acts if each.act == "key.rotate"]
    assert [each.outcome for each in made] == ["begun", "done"]
    assert dict(made[1].facts)["key_id"] == second


async def test_a_drop_that_is_cancelled_while_it_writes_is_done_and_the_next_change_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with opened(await filled(tmp_path)) as rooms:
        first = await rooms.keys.active.active_key_id()
        second, _ = await rooms.key_vault.rotate()
        await rooms.rewrapping.once()
        write = HeldWrite(monkeypatch)
        third, new = await write.cancel_within(rooms.key_vault.drop(first), rooms.key_vault.rotate())
        assert new
        assert [key.key_id for key in await rooms.keys.active.keys()] == [third, second]
        await rooms.rewrapping.once()
    async with opened(tmp_path) as again:
        assert [key.key_id for key in await again.keys.active.keys()] == [third, second]
        assert len(await again.texts()) == RECORDS


async def test_rotating_again_goes_on_with_a_rotation_that_is_not_finished(tmp_path: Path):
    async with opened(await filled(tmp_path)) as rooms:
        first = await rooms.keys.active.active_key_id()
        second, new = await rooms.key_vault.rotate()
        assert new
        assert await rooms.key_vault.rotate() == (second, False)
        report = await rooms.key_vault.report()
        assert report.pending_count == RECORDS
        assert [(each.key.key_id, each.state) for each in report.uses] == [
            (second, KeyState.ACTIVE),
            (first, KeyState.DECRYPT_ONLY),
        ]
        assert await rooms.rewrapping.once() == RECORDS
        assert await rooms.rewrapping.once() == 0
        third, new = await rooms.key_vault.rotate()
        assert new
        assert third != second


async def test_a_key_in_use_is_not_dropped_and_a_retired_one_is(tmp_path: Path):
    async with opened(await filled(tmp_path)) as rooms:
        first = await rooms.keys.active.active_key_id()
        await rooms.key_vault.rotate()
        for key_id, reason, word in (
            (first, Reason.REASON_KEY_IN_USE, "has 3 credentials under it"),
            (await rooms.keys.active.active_key_id(), Reason.REASON_KEY_IN_USE, "is the active key"),
            ("kek-never", Reason.REASON_KEY_NOT_FOUND, "there is no key kek-never"),
        ):
            with pytest.raises(SendenseError, match=word) as refused:
                await rooms.key_vault.drop(key_id)
            assert refused.value.reason == reason
        await rooms.rewrapping.once()
        await rooms.key_vault.drop(first)
        assert len(await rooms.texts()) == RECORDS
        assert first not in (tmp_path / "kek.json").read_text()


async def test_a_record_that_does_not_open_stays_as_it_is_and_holds_up_no_other(tmp_path: Path):
    async with opened(await filled(tmp_path)) as rooms:
        found = (await rooms.catalog.run(credentials.listed))[1]
        await rooms.catalog.run(
            lambda connection: connection.exec_driver_sql(
                "UPDATE credentials SET wrapped_key = x'00' WHERE credential_id = ?", (found.credential_id,)
            )
        )
        second, _ = await rooms.key_vault.rotate()
        assert await rooms.rewrapping.once() == RECORDS - 1
        report = await rooms.key_vault.report()
        assert (report.pending_count, report.unreadable_count) == (0, 1)
        await rooms.vault.rotate(found.credential_id, secret("given anew"))
        assert await rooms.key_ids() == {second}
        await rooms.rewrapping.once()
        assert (await rooms.key_vault.report()).unreadable_count == 0
        # One that is lost for good does not keep operators from a new key.
        _, new = await rooms.key_vault.rotate()
        assert new


async def test_what_is_stored_while_keys_change_is_under_a_key_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    enclose = CredentialVault._enclose

    async def enclose_and_take_a_while(*arguments: Any) -> Envelope:
        made = await enclose(*arguments)
        await asyncio.sleep(0.1)  # as a provider in the network may
        return made

    monkeypatch.setattr(CredentialVault, "_enclose", enclose_and_take_a_while)
    async with opened(await filled(tmp_path)) as rooms:

        async def change() -> None:
            for _ in range(6):
                await rooms.key_vault.rotate()
                await rooms.rewrapping.once()
                for use in (await rooms.key_vault.report()).uses:
                    if use.state is KeyState.RETIRED:
                        with contextlib.suppress(SendenseError):  # it was used again in between
                            await rooms.key_vault.drop(use.key.key_id)

        async def store(name: str) -> None:
            credential_id = await rooms.store(name)
            await rooms.vault.rotate(credential_id, secret("another"))

        await asyncio.gather(change(), *(store(f"new-{number}") for number in range(4)))
        assert len(await rooms.texts()) == RECORDS + 4


async def test_the_old_wrapped_keys_do_not_stay_in_the_file(tmp_path: Path):
    async with opened(await filled(tmp_path)) as rooms:
        before = [each.envelope.wrapped_key for each in await rooms.catalog.run(credentials.listed)]
        await rooms.key_vault.rotate()
        await rooms.rewrapping.once()
        left = b"".join(file.read_bytes() for file in tmp_path.glob("credentials.sqlite*"))
    assert not any(each in left for each in before)


@contextlib.asynccontextmanager
async def key_service(service: Service) -> AsyncIterator[KeyServiceStub]:
    async with rpc.connect(service.paths.operator_socket) as channel:
        yield KeyServiceStub(channel)


def test_a_killed_service_goes_on_with_the_rotation_when_it_starts_again(short_tmp: Path):
    count = 30

    async def begin(service: Service) -> list[str]:
        await service.register()
        stored = [(await service.store(f"vc-{number}")).credential_id for number in range(count)]
        async with key_service(service) as stub:
            answer = await stub.RotateKey(pb.RotateKeyRequest())
            assert answer.made_new_key
            # Reading goes on meanwhile.
            lease = await service.issue(stored[-1])
            assert (await service.redeem(lease)).password
        return stored

    async def finish(service: Service, stored: list[str]) -> None:
        async with key_service(service) as stub:
            async with asyncio.timeout(60):
                while (answer := await stub.ListKeys(pb.ListKeysRequest())).pending_count:
                    pass  # each time is a call
            assert [(key.state, key.credential_count) for key in answer.keys] == [
                (pb.KEY_STATE_ACTIVE, count),
                (pb.KEY_STATE_RETIRED, 0),
            ]
            assert answer.provider == "local"
            assert answer.place == str(service.paths.key_file)
            error = await failure_of(stub.DropKey(pb.DropKeyRequest(key_id=answer.active_key_id)))
            assert error.reason == Reason.REASON_KEY_IN_USE
            await stub.DropKey(pb.DropKeyRequest(key_id=answer.keys[1].key_id))
        for credential_id in stored:
            assert (await service.redeem(await service.issue(credential_id))).password

    with running(short_tmp) as first:
        stored = asyncio.run(begin(first))
        first.process.kill()
        first.process.wait(10)
    with running(short_tmp) as again:
        again.agent = first.agent
        asyncio.run(finish(again, stored))
