# SPDX-License-Identifier: Apache-2.0
"""Sites and the keys of their agents."""

from __future__ import annotations

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import site_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog.schema import sites
from sendense_hub.domain.times import now_us, to_timestamp


def register(connection: sa.Connection, name: str, ssh_public_key: str, fingerprint: str) -> pb.Site:
    """Adds a site; the same site with the same key is a no-op.

    Raises:
        SendenseError: SITE_EXISTS when the name has another key or the key another name.
    """
    for known in listed(connection):
        if known.name == name and known.fingerprint == fingerprint:
            return known
        if known.name == name or known.fingerprint == fingerprint:
            raise SendenseError(
                Reason.REASON_SITE_EXISTS,
                f"site {known.name!r} is registered with the key {known.fingerprint}",
                remedy="One key belongs to one site, for good.",
                site=known.name,
            )
    connection.execute(
        sites.insert().values(
            name=name, ssh_public_key=ssh_public_key, fingerprint=fingerprint, create_time_us=now_us()
        )
    )
    return get(connection, name)


def get(connection: sa.Connection, name: str) -> pb.Site:
    """One site; SITE_NOT_FOUND."""
    for site in listed(connection):
        if site.name == name:
            return site
    raise SendenseError(
        Reason.REASON_SITE_NOT_FOUND, f"there is no site {name!r}", remedy="Register its agent.", site=name
    )


def by_fingerprint(connection: sa.Connection, fingerprint: str) -> str:
    """Whose key it is; SITE_NOT_FOUND."""
    name = connection.scalar(sa.select(sites.c.name).where(sites.c.fingerprint == fingerprint))
    if name is None:
        raise SendenseError(Reason.REASON_SITE_NOT_FOUND, f"no site has the key {fingerprint}")
    return str(name)


def listed(connection: sa.Connection) -> list[pb.Site]:
    """All, by name; whether they are connected is not the catalog's to know."""
    return [
        pb.Site(
            name=row.name,
            ssh_public_key=row.ssh_public_key,
            fingerprint=row.fingerprint,
            create_time=to_timestamp(row.create_time_us),
        )
        for row in connection.execute(sa.select(sites).order_by(sites.c.name))
    ]
