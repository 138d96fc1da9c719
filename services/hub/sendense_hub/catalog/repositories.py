# SPDX-License-Identifier: Apache-2.0
"""Which repository a name means: a moved directory is fine, another repository under an old name is not."""

from __future__ import annotations

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.catalog.schema import repositories


def bind(connection: sa.Connection, name: str, path: str, repository_id: str) -> None:
    """Keeps where the repository `name` is now.

    Raises:
        SendenseError: REPOSITORY_NOT_FOUND when the directory holds another repository than before.
    """
    known = connection.scalar(sa.select(repositories.c.repository_id).where(repositories.c.name == name))
    if known is None:
        connection.execute(repositories.insert().values(name=name, path=path, repository_id=repository_id))
    elif known != repository_id:
        raise SendenseError(
            Reason.REASON_REPOSITORY_NOT_FOUND,
            f"{path} holds repository {repository_id}; {name!r} has been {known} so far",
            remedy="Mount the right directory, or give the new repository a name of its own.",
            repository=name,
        )
    else:
        connection.execute(repositories.update().where(repositories.c.name == name).values(path=path))


def identity(connection: sa.Connection, name: str) -> str:
    """The ID of the repository that this name means; empty: it means none."""
    return str(
        connection.scalar(sa.select(repositories.c.repository_id).where(repositories.c.name == name)) or ""
    )
