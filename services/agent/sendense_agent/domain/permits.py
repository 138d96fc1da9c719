# SPDX-License-Identifier: Apache-2.0
"""Who may do how much at once where: counted, in the order in which it was asked for. No I/O.

A permit is for all of its places or none, so that nobody keeps one place while he waits for another: there
is no deadlock. Who asked first for a place gets it first: a job of many places is not overtaken for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sendense.agent.v1.permits_pb2 import (
    PERMIT_KIND_DATASTORE_SNAPSHOT,
    PERMIT_KIND_HOST_READ,
    PermitKind,
)
from sendense_agent.domain.limits import Limits


@dataclass(frozen=True)
class Ask:
    """One permit that was asked for."""

    owner: str
    permit_id: str
    kind: PermitKind.ValueType
    places: Mapping[str, str]
    """Identity to name."""

    def keys(self) -> set[tuple[int, str]]:
        """What is counted."""
        return {(self.kind, each) for each in self.places}


class PermitBook:
    """All permits of one agent."""

    def __init__(self, limits: Limits) -> None:
        self._limits: dict[int, int] = {
            PERMIT_KIND_DATASTORE_SNAPSHOT: limits.snapshots_per_datastore,
            PERMIT_KIND_HOST_READ: limits.reads_per_host,
        }
        self._granted: list[Ask] = []
        self._waiting: list[Ask] = []

    def ask(self, ask: Ask) -> bool:
        """Whether it is granted at once; else it waits for its turn.

        Raises:
            ValueError: it is not a question, or was asked before.
        """
        if ask.kind not in self._limits or not ask.places:
            raise ValueError(f"{ask} asks for nothing")
        asked = {(each.owner, each.permit_id) for each in [*self._granted, *self._waiting]}
        if (ask.owner, ask.permit_id) in asked:
            raise ValueError(f"{ask} was asked before")
        self._waiting.append(ask)
        return ask in self._grant()

    def give_back(self, owner: str, permit_id: str | None = None) -> list[Ask]:
        """One permit or question of an owner, or all; gives what is granted by it. Unknown ones are fine."""

        def goes(each: Ask) -> bool:
            return each.owner == owner and permit_id in (None, each.permit_id)

        self._granted = [each for each in self._granted if not goes(each)]
        self._waiting = [each for each in self._waiting if not goes(each)]
        return self._grant()

    def waits_for(self, ask: Ask) -> str:
        """Which of its places are full, for people."""
        used = self._used()
        limit = self._limits[ask.kind]
        full = [name for key, name in sorted(ask.places.items()) if used[ask.kind, key] >= limit]
        names = ", ".join(full or sorted(ask.places.values()))
        if ask.kind == PERMIT_KIND_HOST_READ:
            return f"host {names}, from which {limit} disks are read at once at most"
        return f"datastore {names}, on which {limit} VMs have a snapshot of ours at once at most"

    def counts(self) -> dict[tuple[int, str], int]:
        """What is in use, by (kind, place)."""
        return dict(self._used())

    def _used(self) -> Counter[tuple[int, str]]:
        return Counter(key for each in self._granted for key in each.keys())  # noqa: SIM118 - not a dict

    def _grant(self) -> list[Ask]:
        """Grants what now can be, in order; who waits keeps his places from those that come after."""
        used, wanted_before, granted = self._used(), set[tuple[int, str]](), []
        for ask in list(self._waiting):
            keys = ask.keys()
            if keys & wanted_before or any(used[key] >= self._limits[ask.kind] for key in keys):
                wanted_before |= keys
                continue
            used.update(keys)
            granted.append(ask)
            self._granted.append(ask)
            self._waiting.remove(ask)
        return granted
