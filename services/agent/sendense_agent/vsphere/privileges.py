# SPDX-License-Identifier: Apache-2.0
"""Which privileges that backups need the user lacks, over all VMs and datastores of a vCenter."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from sendense.agent.v1.agent_service_pb2 import MissingPrivilege
from sendense_agent.vsphere.checks import DATASTORE_PRIVILEGES, PRIVILEGES
from sendense_agent.vsphere.inventory import all_of
from sendense_agent.vsphere.names import shown
from sendense_agent.vsphere.session import Session

_ENTITIES_PER_CALL = 100
_NAMED = 3


async def missing_privileges(session: Session) -> list[MissingPrivilege]:
    """Those that are missing on at least one VM or datastore; all of them, not only the first.

    Where the user sees no VM at all, the root folder is asked.
    """
    doing = "asking for privileges"
    found = []
    for kind, word, wanted in (
        (vim.VirtualMachine, "VMs", PRIVILEGES),
        (vim.Datastore, "datastores", DATASTORE_PRIVILEGES),
    ):
        objects = await session.read(doing, lambda kind=kind: all_of(session, kind, ["name"]))  # type: ignore[misc]
        named = {reference: shown(facts.get("name") or "?") for reference, facts in objects}
        named = named or {session.content.rootFolder: "the root folder"}
        lacking: dict[str, list[str]] = {each: [] for each in wanted}
        for start in range(0, len(named), _ENTITIES_PER_CALL):
            some = list(named)[start : start + _ENTITIES_PER_CALL]
            for answer in await _ask(session, some, wanted):
                for each in answer.privAvailability:
                    if not each.isGranted:
                        lacking[each.privId].append(named[answer.entity])
        found += [_missing(each, names, len(named), word) for each, names in lacking.items() if names]
    return found


async def _ask(session: Session, entities: list[Any], wanted: tuple[str, ...]) -> list[Any]:
    manager = session.content.authorizationManager
    return await session.read(
        "asking for privileges",
        lambda: list(manager.HasPrivilegeOnEntities(entities, session.key, list(wanted))),
    )


def _missing(privilege: str, names: list[str], count: int, word: str) -> MissingPrivilege:
    everywhere = len(names) == count
    if everywhere:
        where = f"all {count} {word}" if count > 1 else names[0]
    else:
        more = ", …" if len(names) > _NAMED else ""
        where = f"{len(names)} of {count} {word} ({', '.join(sorted(names)[:_NAMED])}{more})"
    return MissingPrivilege(privilege=privilege, where=where, everywhere=everywhere)
