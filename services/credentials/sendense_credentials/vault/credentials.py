# SPDX-License-Identifier: Apache-2.0
"""Keeping credentials: store, list, rotate, delete."""

from __future__ import annotations

import dataclasses
import logging
import uuid

import sendense.credentials.v1.credential_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError, invalid
from sendense_credentials.catalog import Catalog, Connection, credentials, leases
from sendense_credentials.domain.clock import Clock
from sendense_credentials.domain.credential import Credential, Envelope, check_name
from sendense_credentials.domain.secret import Secret
from sendense_credentials.vault.envelope import enclose, unwrap_data_key
from sendense_credentials.vault.local_keys import LocalKeys

log = logging.getLogger(__name__)


class CredentialVault:
    """Credentials for operators. Nothing it returns holds a plaintext."""

    def __init__(self, catalog: Catalog, keys: LocalKeys, clock: Clock) -> None:
        self._catalog = catalog
        self._keys = keys
        self._clock = clock

    async def store(self, request_id: str, name: str, secret: Secret) -> Credential:
        """Keeps a new credential; the same request again returns what it made.

        Raises:
            SendenseError: CREDENTIAL_EXISTS; INVALID_REQUEST for an impossible name, or a request ID that
                stored a credential of another name.
        """
        check_name(name)
        now_us = self._clock()
        credential_id = str(uuid.uuid4())
        made = Credential(
            credential_id=credential_id,
            name=name,
            version=1,
            create_time_us=now_us,
            rotate_time_us=now_us,
            envelope=self._enclose(secret, credential_id, 1),
        )

        def transaction(connection: Connection) -> Credential:
            before = credentials.find_by_request(connection, request_id)
            if before is not None and before.name != name:
                raise invalid("request_id", f"was used to store the credential {before.name!r}")
            if before is not None:
                return before
            if credentials.find_by_name(connection, name) is not None:
                raise SendenseError(
                    Reason.REASON_CREDENTIAL_EXISTS,
                    f"a credential {name!r} exists already",
                    remedy="Choose another name, or rotate the one that is there.",
                    credential=name,
                )
            credentials.insert(connection, made, request_id)
            return made

        stored = await self._catalog.run(transaction)
        if stored is made:
            log.info("stored credential %s %r under key %s", credential_id, name, made.envelope.key_id)
        return stored

    async def listed(self) -> list[Credential]:
        """All, by name."""
        return await self._catalog.run(credentials.listed)

    async def rotate(self, credential_id: str, secret: Secret) -> Credential:
        """Replaces the secret, under the active key; leases for the old one end.

        The old secret need not be readable: this mends a credential whose key is lost.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND.
        """

        def transaction(connection: Connection) -> tuple[Credential, int]:
            before = credentials.find(connection, credential_id)
            if before is None:
                raise not_found(credential_id)
            version = before.version + 1
            after = dataclasses.replace(
                before,
                version=version,
                rotate_time_us=self._clock(),
                envelope=self._enclose(secret, credential_id, version),
            )
            credentials.update(connection, after)
            return after, leases.end_all_of(connection, credential_id)

        rotated, ended = await self._catalog.run(transaction)
        log.info(
            "rotated credential %s %r to version %d under key %s; %d leases ended",
            credential_id,
            rotated.name,
            rotated.version,
            rotated.envelope.key_id,
            ended,
        )
        return rotated

    async def delete(self, credential_id: str) -> None:
        """Removes a credential and its leases.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND.
        """
        if not await self._catalog.run(lambda connection: credentials.delete(connection, credential_id)):
            raise not_found(credential_id)
        log.info("deleted credential %s", credential_id)

    async def report_unreadable(self) -> int:
        """Logs every credential that the keys at hand do not open; returns how many there are."""
        unreadable = 0
        for each in await self.listed():
            try:
                unwrap_data_key(each.envelope, each.credential_id, each.version, self._keys)
            except SendenseError as error:
                unreadable += 1
                log.error("credential %s %r: %s. %s", each.credential_id, each.name, error, error.remedy)
        return unreadable

    def _enclose(self, secret: Secret, credential_id: str, version: int) -> Envelope:
        plaintext = pb.Secret(username=secret.username, password=secret.password).SerializeToString()
        return enclose(plaintext, credential_id, version, self._keys)


def not_found(credential_id: str) -> SendenseError:
    """CREDENTIAL_NOT_FOUND."""
    return SendenseError(
        Reason.REASON_CREDENTIAL_NOT_FOUND,
        f"there is no credential {credential_id}",
        credential=credential_id,
    )
