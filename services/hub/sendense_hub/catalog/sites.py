# SPDX-License-Identifier: Apache-2.0
"""Sites and the keys of their agents."""

from __future__ import annotations

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import site_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog.schema import retired_keys, sites
from sendense_hub.domain.times import now_us, to_timestamp


def register(connection: sa.Connection, name: str, ssh_public_key: str, fingerprint: str) -> pb.Site:
    """Adds a site; the same site with the same key is a no-op. A site that was revoked takes a new key.

    Raises:
        SendenseError: SITE_EXISTS when the name has another key or the key another name; SITE_REVOKED when
            the key was revoked or replaced.
    """
    for known in listed(connection):
        revoked = known.HasField("revoke_time")
        if known.name == name and known.fingerprint == fingerprint and not revoked:
            return known
        if (known.name == name and not revoked) or (known.fingerprint == fingerprint and known.name != name):
            raise SendenseError(
                Reason.REASON_SITE_EXISTS,
                f"site {known.name!r} is registered with the key {known.fingerprint}",
                remedy=f"One key belongs to one site. New keys: `sendense agent rotate-key {known.name}`.",
                site=known.name,
            )
    set_key(connection, name, ssh_public_key, fingerprint)
    return get(connection, name)


def set_key(connection: sa.Connection, name: str, ssh_public_key: str, fingerprint: str) -> str:
    """A site, new or known, has this key from now on, and no other.

    Returns:
        Fingerprint of the key that it had until now; empty when there was none, or it was this one.

    Raises:
        SendenseError: SITE_REVOKED when the key was revoked or replaced; SITE_EXISTS when it is another's.
    """
    retired = connection.scalar(
        sa.select(retired_keys.c.site_name).where(retired_keys.c.fingerprint == fingerprint)
    )
    if retired is not None:
        raise _retired(str(retired), fingerprint)
    row = connection.execute(sa.select(sites).where(sites.c.name == name)).one_or_none()
    owner = connection.scalar(sa.select(sites.c.name).where(sites.c.fingerprint == fingerprint))
    if owner not in (None, name):
        raise SendenseError(
            Reason.REASON_SITE_EXISTS,
            f"site {owner!r} has the key {fingerprint}",
            remedy="Have the agent make new keys: one key belongs to one site.",
            site=owner,
        )
    values = {"ssh_public_key": ssh_public_key, "fingerprint": fingerprint, "revoke_time_us": None}
    if row is None:
        connection.execute(sites.insert().values(name=name, create_time_us=now_us(), **values))
        return ""
    if row.fingerprint != fingerprint:
        _retire(connection, name, row.fingerprint)
    connection.execute(sites.update().where(sites.c.name == name).values(**values))
    return str(row.fingerprint) if row.fingerprint != fingerprint else ""


def revoke(connection: sa.Connection, name: str) -> pb.Site:
    """Its key opens nothing any more; a no-op for one that was revoked. SITE_NOT_FOUND."""
    site = get(connection, name)
    if not site.HasField("revoke_time"):
        _retire(connection, name, site.fingerprint)
        connection.execute(sites.update().where(sites.c.name == name).values(revoke_time_us=now_us()))
    return get(connection, name)


def get(connection: sa.Connection, name: str) -> pb.Site:
    """One site; SITE_NOT_FOUND."""
    for site in listed(connection):
        if site.name == name:
            return site
    raise SendenseError(
        Reason.REASON_SITE_NOT_FOUND,
        f"there is no site {name!r}",
        remedy="`sendense agent list` has their names; `sendense agent invite SITE` lets a new one in.",
        site=name,
    )


def by_fingerprint(connection: sa.Connection, fingerprint: str) -> str:
    """Whose key it is; SITE_NOT_FOUND, SITE_REVOKED."""
    name = connection.scalar(
        sa.select(sites.c.name).where(sites.c.fingerprint == fingerprint, sites.c.revoke_time_us.is_(None))
    )
    if name is not None:
        return str(name)
    retired = connection.scalar(
        sa.select(retired_keys.c.site_name).where(retired_keys.c.fingerprint == fingerprint)
    )
    if retired is not None:
        raise _retired(str(retired), fingerprint)
    raise SendenseError(Reason.REASON_SITE_NOT_FOUND, f"no site has the key {fingerprint}")


def listed(connection: sa.Connection) -> list[pb.Site]:
    """All, by name; whether they are connected is not the catalog's to know."""
    return [
        pb.Site(
            name=row.name,
            ssh_public_key=row.ssh_public_key,
            fingerprint=row.fingerprint,
            create_time=to_timestamp(row.create_time_us),
            revoke_time=to_timestamp(row.revoke_time_us),
        )
        for row in connection.execute(sa.select(sites).order_by(sites.c.name))
    ]


def _retire(connection: sa.Connection, name: str, fingerprint: str) -> None:
    known = connection.scalar(sa.select(sa.func.count()).where(retired_keys.c.fingerprint == fingerprint))
    if not known:
        connection.execute(
            retired_keys.insert().values(fingerprint=fingerprint, site_name=name, retire_time_us=now_us())
        )


def _retired(name: str, fingerprint: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_SITE_REVOKED,
        f"the key {fingerprint} of site {name!r} was revoked or replaced",
        remedy=f"Let the site in with new keys: `sendense agent invite {name}`.",
        site=name,
    )
