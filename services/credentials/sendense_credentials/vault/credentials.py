# SPDX-License-Identifier: Apache-2.0
"""Keeping credentials: store, list, grant, bind, rotate, delete."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Awaitable, Callable

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import audit_log
from sendense_common.errors import SendenseError, invalid
from sendense_credentials.catalog import Catalog, Connection, agents, credentials, grants, leases
from sendense_credentials.domain import endpoint
from sendense_credentials.domain.clock import Clock
from sendense_credentials.domain.credential import Credential, Envelope, check_name
from sendense_credentials.domain.secret import Secret
from sendense_credentials.vault.envelope import disclose, enclose, unwrap_data_key
from sendense_credentials.vault.keyring import Keyring
from sendense_credentials.vault.plaintext import from_plaintext, to_plaintext

log = logging.getLogger(__name__)


class CredentialVault:
    """Credentials for operators. Nothing it returns holds a plaintext."""

    def __init__(self, catalog: Catalog, keys: Keyring, clock: Clock) -> None:
        self._catalog = catalog
        self._keys = keys
        self._clock = clock

    async def store(self, request_id: str, name: str, secret: Secret, agent_ids: list[str]) -> Credential:
        """Keeps a new credential, granted to these agents; the same request again returns what it made.

        Raises:
            SendenseError: CREDENTIAL_EXISTS, AGENT_UNKNOWN; INVALID_REQUEST for an impossible name, a secret
                without an endpoint, or a request ID that stored a credential of another name.
        """
        check_name(name)
        if secret.endpoint is None:
            raise invalid("secret.endpoint", "is required: a password is for one vCenter")
        now_us = self._clock()
        credential_id = str(uuid.uuid4())

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
            for agent_id in made.agent_ids:
                _grant(connection, credential_id, agent_id, now_us)
            audit_log.record_blocking(
                "credential.store",
                subject=credential_id,
                name=name,
                bound_to=made.bound_to,
                granted_to=",".join(made.agent_ids),
            )
            return made

        async with self._keys.changing:
            made = Credential(
                credential_id=credential_id,
                name=name,
                version=1,
                create_time_us=now_us,
                rotate_time_us=now_us,
                envelope=await self._enclose(secret, credential_id, 1),
                bound_to=str(secret.endpoint),
                agent_ids=tuple(sorted(set(agent_ids))),
            )
            stored = await self._catalog.run(transaction)
        if stored is made:
            log.info(
                "stored credential %s %r for %s under key %s, granted to %s",
                credential_id,
                name,
                made.bound_to,
                made.envelope.key_id,
                ", ".join(made.agent_ids) or "nobody",
            )
        return stored

    async def listed(self) -> list[Credential]:
        """All, by name."""
        return await self._catalog.run(credentials.listed)

    async def rotate(self, credential_id: str, secret: Secret) -> Credential:
        """Replaces the secret, under the active key; leases for the old one end.

        It stays bound to its endpoint, unless the new secret names one. Then the old secret need not be
        readable: this mends a credential whose key is lost.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND; CREDENTIAL_UNREADABLE when the endpoint cannot be kept;
                INVALID_REQUEST when there is none to keep: a new password is never bound to nothing.
        """

        async def changed(before: Credential) -> Secret:
            if secret.endpoint is not None:
                return secret
            endpoint = (await self._secret(before)).endpoint if before.bound_to else None
            if endpoint is None:
                raise _bound_to_nothing(before)
            return dataclasses.replace(secret, endpoint=endpoint)

        return await self._change(credential_id, changed, "its password was changed", rotate=True)

    async def bind(
        self,
        credential_id: str,
        *,
        host: str = "",
        port: int = 0,
        ca_pem: str = "",
        certificate_sha256: bytes = b"",
    ) -> tuple[Credential, endpoint.Endpoint]:
        """Makes it a credential for another endpoint; leases for the old one end. The password stays.

        Host and port stay when neither is given, the trust when none is given: as they are sealed with the
        password, whatever the database says beside it.

        Returns:
            It, and the whole of what it is bound to now.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND, CREDENTIAL_UNREADABLE, INVALID_REQUEST (see
                `endpoint.changed`).
        """
        now: endpoint.Endpoint | None = None

        async def changed(before: Credential) -> Secret:
            nonlocal now
            secret = await self._secret(before)
            try:
                now = endpoint.changed(
                    secret.endpoint,
                    host=host,
                    port=port,
                    ca_pem=ca_pem,
                    certificate_sha256=certificate_sha256,
                )
            except SendenseError as error:
                if secret.endpoint is None and not error.remedy:
                    name = before.name.removeprefix("vcenter/")
                    error.remedy = (
                        f"Give both: `sendense vcenter change {name} --address HOST --ca-file FILE`."
                    )
                raise
            return dataclasses.replace(secret, endpoint=now)

        kept = await self._change(credential_id, changed, "its vCenter's address or trust was changed")
        assert now is not None
        return kept, now

    async def _change(
        self,
        credential_id: str,
        changed: Callable[[Credential], Awaitable[Secret]],
        cause: str,
        *,
        rotate: bool = False,
    ) -> Credential:
        """Keeps what `changed` makes of the present secret as its next version; open leases end."""

        def transaction(connection: Connection) -> int:
            if not credentials.update(connection, after):
                raise not_found(credential_id)
            ended = leases.end_all_of(connection, credential_id, now_us, cause)
            audit_log.record_blocking(
                "credential.rotate" if rotate else "credential.bind",
                subject=credential_id,
                name=after.name,
                version=after.version,
                bound_to=after.bound_to,
                leases_ended=ended,
            )
            return ended

        async with self._keys.changing:  # of two changes at once the later one has the higher version
            before = await self._catalog.run(lambda connection: _found(connection, credential_id))
            secret, version, now_us = await changed(before), before.version + 1, self._clock()
            after = dataclasses.replace(
                before,
                version=version,
                rotate_time_us=now_us if rotate else before.rotate_time_us,
                envelope=await self._enclose(secret, credential_id, version),
                bound_to="" if secret.endpoint is None else str(secret.endpoint),
            )
            ended = await self._catalog.run(transaction)
        log.info(
            "changed credential %s %r to version %d for %s under key %s (%s); %d leases ended",
            credential_id,
            after.name,
            after.version,
            after.bound_to or "any vCenter that the hub names",
            after.envelope.key_id,
            cause,
            ended,
        )
        return after

    async def grant(self, credential_id: str, agent_id: str) -> Credential:
        """Lets an agent open it; twice is once.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND, AGENT_UNKNOWN.
        """
        now_us = self._clock()

        def transaction(connection: Connection) -> Credential:
            _found(connection, credential_id)
            if _grant(connection, credential_id, agent_id, now_us):
                audit_log.record_blocking("credential.grant", subject=credential_id, agent=agent_id)
                log.info("granted credential %s to agent %s", credential_id, agent_id)
            return _found(connection, credential_id)

        return await self._catalog.run(transaction)

    async def ungrant(self, credential_id: str, agent_id: str) -> Credential:
        """Lets an agent open it no more; its open leases end.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND, CREDENTIAL_NOT_GRANTED.
        """
        now_us = self._clock()

        def transaction(connection: Connection) -> tuple[Credential, int]:
            before = _found(connection, credential_id)
            if not grants.remove(connection, credential_id, agent_id):
                raise not_granted(before, agent_id)
            cause = "the grant of its credential was taken back"
            ended = leases.end_all_of(connection, credential_id, now_us, cause, agent_id=agent_id)
            audit_log.record_blocking(
                "credential.ungrant", subject=credential_id, agent=agent_id, leases_ended=ended
            )
            return _found(connection, credential_id), ended

        after, ended = await self._catalog.run(transaction)
        log.info("took credential %s back from agent %s; %d leases ended", credential_id, agent_id, ended)
        return after

    async def delete(self, credential_id: str) -> None:
        """Removes a credential, its grants and its leases.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND; CREDENTIAL_IN_USE while a lease of it waits to be used.
        """

        def transaction(connection: Connection) -> None:
            name = _found(connection, credential_id).name
            waiting = leases.open_of(connection, credential_id, self._clock())
            if waiting:
                raise SendenseError(
                    Reason.REASON_CREDENTIAL_IN_USE,
                    f"credential {name!r} is about to be used: {waiting[0].describe()}",
                    remedy="Wait for that, or take the credential back from the agent first: "
                    f"`sendense vcenter ungrant {name.removeprefix('vcenter/')} --agent SITE`.",
                    credential=credential_id,
                )
            credentials.delete(connection, credential_id)
            audit_log.record_blocking("credential.delete", subject=credential_id, name=name)

        await self._catalog.run(transaction)
        log.info("deleted credential %s", credential_id)

    async def report_unreadable(self) -> int:
        """Logs every credential that the keys at hand do not open; returns how many there are."""
        unreadable = 0
        for each in await self.listed():
            try:
                await unwrap_data_key(each.envelope, each.credential_id, each.version, self._keys)
            except SendenseError as error:
                if error.reason != Reason.REASON_CREDENTIAL_UNREADABLE:
                    log.error("no credential can be opened now: %s. %s", error, error.remedy)
                    return unreadable
                unreadable += 1
                log.error("credential %s %r: %s. %s", each.credential_id, each.name, error, error.remedy)
        return unreadable

    async def _enclose(self, secret: Secret, credential_id: str, version: int) -> Envelope:
        return await enclose(to_plaintext(secret), credential_id, version, self._keys)

    async def _secret(self, credential: Credential) -> Secret:
        """The present one.

        Raises:
            SendenseError: CREDENTIAL_UNREADABLE.
        """
        identity = credential.credential_id, credential.version
        try:
            return from_plaintext(await disclose(credential.envelope, *identity, self._keys))
        except SendenseError as error:
            name = credential.name.removeprefix("vcenter/")
            error.remedy += (
                f" To give it anew: `sendense vcenter password {name} --username USER --password-file FILE "
                "--address HOST --ca-file FILE`."
            )
            raise


def _bound_to_nothing(credential: Credential) -> SendenseError:
    name = credential.name.removeprefix("vcenter/")
    return invalid(
        "secret.endpoint",
        f"is required: credential {credential.name!r} was stored before passwords were bound to a vCenter",
        remedy="Bind the new password at once: "
        f"`sendense vcenter password {name} --username USER --password-file FILE "
        "--address HOST --ca-file FILE`.",
    )


def _found(connection: Connection, credential_id: str) -> Credential:
    found = credentials.find(connection, credential_id)
    if found is None:
        raise not_found(credential_id)
    return found


def _grant(connection: Connection, credential_id: str, agent_id: str, now_us: int) -> bool:
    if agents.find(connection, agent_id) is None:
        raise agent_unknown(agent_id)
    return grants.add(connection, credential_id, agent_id, now_us)


def agent_unknown(agent_id: str) -> SendenseError:
    """AGENT_UNKNOWN."""
    return SendenseError(
        Reason.REASON_AGENT_UNKNOWN,
        f"the credentials service does not know agent {agent_id}",
        remedy="`sendense agent list` shows who there is; "
        "`sendense agent invite SITE` begins with a new one.",
        site=agent_id,
    )


def not_granted(credential: Credential, agent_id: str) -> SendenseError:
    """CREDENTIAL_NOT_GRANTED."""
    name = credential.name.removeprefix("vcenter/")
    return SendenseError(
        Reason.REASON_CREDENTIAL_NOT_GRANTED,
        f"credential {credential.name!r} is not granted to agent {agent_id}, but to "
        f"{', '.join(credential.agent_ids) or 'nobody'}",
        remedy=f"If that agent is to use it: `sendense vcenter grant {name} --agent {agent_id}`.",
        credential=credential.credential_id,
        site=agent_id,
    )


def not_found(credential_id: str) -> SendenseError:
    """CREDENTIAL_NOT_FOUND."""
    return SendenseError(
        Reason.REASON_CREDENTIAL_NOT_FOUND,
        f"there is no credential {credential_id}",
        credential=credential_id,
    )
