# SPDX-License-Identifier: Apache-2.0
"""KeyService, for operators."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

import sendense.credentials.v1.key_service_pb2 as pb
from sendense.credentials.v1.key_service_pb2_grpc import KeyServiceServicer
from sendense_common import audit_log
from sendense_credentials.catalog import copies
from sendense_credentials.domain.key import KeyState, KeyUse
from sendense_credentials.rpc.wire import from_us
from sendense_credentials.vault import KeyVault

_Context = grpc.aio.ServicerContext[Any, Any]

_PIECE_BYTES = 256 * 1024
_STATES = {
    KeyState.ACTIVE: pb.KEY_STATE_ACTIVE,
    KeyState.DECRYPT_ONLY: pb.KEY_STATE_DECRYPT_ONLY,
    KeyState.RETIRED: pb.KEY_STATE_RETIRED,
    KeyState.MISSING: pb.KEY_STATE_MISSING,
    KeyState.UNKNOWN: pb.KEY_STATE_UNSPECIFIED,
}


class KeyServicer(KeyServiceServicer):
    """Tells of keys, makes and drops them. No key passes here."""

    def __init__(self, vault: KeyVault, database_file: Path) -> None:
        self._vault = vault
        self._database_file = database_file

    async def ListKeys(self, request: pb.ListKeysRequest, context: _Context) -> pb.ListKeysResponse:
        """Tells how it stands."""
        report = await self._vault.report()
        token_end_us = self._vault.token_end_us
        return pb.ListKeysResponse(
            keys=map(_from_use, report.uses),
            active_key_id=report.active_key_id,
            provider=self._vault.kind,
            place=self._vault.place,
            pending_count=report.pending_count,
            unreadable_count=report.unreadable_count,
            failure=report.failure.to_failure() if report.failure else None,
            rewrap_failure=report.rewrap_failure.to_failure() if report.rewrap_failure else None,
            token_end_time=None if token_end_us is None else from_us(token_end_us),
        )

    async def RotateKey(self, request: pb.RotateKeyRequest, context: _Context) -> pb.RotateKeyResponse:
        """Makes a new key."""
        active, new = await self._vault.rotate()
        return pb.RotateKeyResponse(active_key_id=active, made_new_key=new)

    async def DropKey(self, request: pb.DropKeyRequest, context: _Context) -> pb.DropKeyResponse:
        """Forgets a key."""
        await self._vault.drop(request.key_id)
        return pb.DropKeyResponse()

    async def BackUpDatabase(
        self, request: pb.BackUpDatabaseRequest, context: _Context
    ) -> AsyncIterator[pb.BackUpDatabaseResponse]:
        """Answers with a copy of the database."""
        async with audit_log.recorded("key.backup", subject=str(self._database_file)):
            with contextlib.ExitStack() as held:
                copy = await asyncio.to_thread(held.enter_context, copies.copied(self._database_file))
                while data := copy.read(_PIECE_BYTES):
                    yield pb.BackUpDatabaseResponse(data=data)
        yield pb.BackUpDatabaseResponse(done=True)


def _from_use(use: KeyUse) -> pb.Key:
    made = use.key.create_time_us
    return pb.Key(
        key_id=use.key.key_id,
        state=_STATES[use.state],
        create_time=None if made is None else from_us(made),
        credential_count=use.credential_count,
    )
