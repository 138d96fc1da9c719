# SPDX-License-Identifier: Apache-2.0
"""The rules by which hypothesis plays a VM, its administrator, its vCenter and its backups.

What is true after each backup: a point that is complete restores to what the disks held when its snapshot
was made, byte for byte, and so do all earlier ones at the end; a backup that failed left nothing; no snapshot
stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.model.guest import LARGEST_BYTES, SIZES, Change, Guest


@dataclass(frozen=True)
class Trouble:
    """What happens while a backup runs."""

    name: str = ""
    """One of `Rounds.troubles`; empty: nothing."""
    moment: int = 0
    """When, or how often: the trouble makes it fit."""


@dataclass(frozen=True)
class Order:
    """One backup, and what happens while it runs."""

    full: bool = False
    trouble: Trouble = Trouble()
    meanwhile: tuple[Change, ...] = ()
    """Of the guest, when the snapshot exists."""
    again: bool = False
    """Whether another one follows at once."""


@dataclass(frozen=True)
class Outcome:
    """Of one backup."""

    point: Any
    """What `Rounds.restores` takes; None: it failed."""
    failure: str
    """In words; empty when it did not fail."""
    modes: dict[int, str]
    """By device key: how the disks were copied."""
    snapshot_replaced: bool = False
    """Whether the point is of a second snapshot, made after what the guest did meanwhile."""


class Rounds(Protocol):
    """What does the backups: the copy engine in this process, or the whole system."""

    troubles: Sequence[str]
    """Those that it can make."""
    may_fail: frozenset[str]
    """Troubles after which a backup may fail, and then leaves nothing; all others it must survive."""

    def new_vm(self, capacities: Sequence[int]) -> list[int]:
        """Another VM; the ones before are not backed up any more. Gives device keys."""

    def command(self, name: str, **arguments: Any) -> Any:
        """A command of the lab about the VM."""

    def change(self, key: int, change: Change, offset: int, data: bytes) -> None:
        """The guest does something."""

    def settings(self, **values: Any) -> None:
        """Of the lab."""

    def back_up(self, *, full: bool, trouble: Trouble, meanwhile: Callable[[], None]) -> Outcome:
        """One backup; `meanwhile` is called once, when its snapshot exists and nothing has been read."""

    def restores(self, point: Any, disks: dict[int, bytes]) -> list[str]:
        """What of a complete point is not as it should be."""

    def left(self) -> list[str]:
        """What should not be there between backups: snapshots, half-made points."""


CHANGES = st.builds(
    Change,
    kind=st.sampled_from(["write", "write", "zero", "trim"]),
    disk=st.integers(0, 3),
    place=st.sampled_from([0, 1, 100, 333, 512, 700, 1000, 1022, 1023]) | st.integers(0, 1023),
    length_bytes=st.sampled_from([1, 511, 512, 4096, 65536, 70_000, 1 << 20, 3 << 20]),
    seed=st.integers(0, 1 << 30),
)


def state_machine(
    rounds: Rounds, said: Callable[[str], None], failed: Callable[[Exception], None]
) -> type[RuleBasedStateMachine]:
    """The rules, on these rounds.

    Args: said: takes a line about each backup. failed: takes what went wrong, before it is played again.
    """
    troubles = st.builds(Trouble, st.sampled_from(rounds.troubles), st.integers(0, 7))
    meanwhile = st.lists(CHANGES.filter(lambda each: each.kind != "trim"), max_size=2).map(tuple)
    # Beside whatever else happens: hypothesis leaves out some rules in each life, and backups should stay.
    kinds: list[st.SearchStrategy[Order | None]] = [
        *[st.none()] * 5,
        st.builds(Order),
        st.builds(Order, full=st.just(True)),
        st.builds(Order, meanwhile=meanwhile),
        st.builds(Order, trouble=troubles, meanwhile=meanwhile, again=st.booleans()),
    ]
    orders = st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)

    class BackupsOfOneVm(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.guest = Guest()
            self.points: list[tuple[Any, dict[int, bytes]]] = []

        @initialize(sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=2))
        def begin(self, sizes: list[int]) -> None:
            rounds.settings(areas_per_page=2000, window_bytes=0, used_areas=True)
            keys = rounds.new_vm(sizes)
            self.guest = Guest({key: bytearray(size) for key, size in zip(keys, sizes, strict=True)})

        @rule(changes=st.lists(CHANGES, min_size=1, max_size=4), then=orders)
        def guest_changes_disks(self, changes: list[Change], then: Order | None) -> None:
            for each in changes:
                self._change(each)
            self._do(then)

        @rule(change=CHANGES, then=orders)
        def guest_changes_a_disk(self, change: Change, then: Order | None) -> None:
            self._change(change)
            self._do(then)

        @rule(number=st.integers(0, 3), sectors=st.integers(1, 3000), then=orders)
        def disk_grows(self, number: int, sectors: int, then: Order | None) -> None:
            key = self.guest.key(number)
            content = self.guest.disks[key]
            more = min(sectors * 512, LARGEST_BYTES - len(content))
            if more > 0:
                rounds.command("resize_disk", disk=key, capacity_bytes=len(content) + more)
                content.extend(bytes(more))
            self._do(then)

        @rule(size=st.sampled_from(SIZES), then=orders)
        def disk_is_added(self, size: int, then: Order | None) -> None:
            if len(self.guest.disks) < 3:
                key = rounds.command("add_disk", capacity_bytes=size)
                self.guest.disks[key] = bytearray(size)
            self._do(then)

        @rule(number=st.integers(0, 3), then=orders)
        def disk_is_removed(self, number: int, then: Order | None) -> None:
            if len(self.guest.disks) > 1:
                key = self.guest.key(number)
                rounds.command("remove_disk", disk=key)
                del self.guest.disks[key]
            self._do(then)

        @rule(number=st.integers(0, 3), size=st.sampled_from([0, *SIZES]), then=orders)
        def disk_is_replaced(self, number: int, size: int, then: Order | None) -> None:
            key = self.guest.key(number)
            size = size or len(self.guest.disks[key])
            rounds.command("replace_disk", disk=key, capacity_bytes=size)
            self.guest.disks[key] = bytearray(size)
            self._do(then)

        @rule(number=st.integers(0, 3), datastore=st.sampled_from(["datastore1", "datastore2"]), then=orders)
        def disk_moves(self, number: int, datastore: str, then: Order | None) -> None:
            rounds.command("move_disk", disk=self.guest.key(number), datastore=datastore)
            self._do(then)

        @rule(then=orders)
        def tracking_begins_anew(self, then: Order | None) -> None:
            rounds.command("reset_tracking")
            self._do(then)

        @rule(then=orders)
        def nothing_happens(self, then: Order | None) -> None:
            self._do(then)

        @rule(
            areas=st.sampled_from([1, 2, 3, 2000]),
            window=st.sampled_from([0, 0, 65536, 3 * 65536, 1 << 20]),
            used=st.sampled_from([True, True, True, False]),
            then=orders,
        )
        def vcenter_answers_otherwise(self, areas: int, window: int, used: bool, then: Order | None) -> None:
            rounds.settings(areas_per_page=areas, window_bytes=window, used_areas=used)
            self._do(then)

        def _change(self, change: Change) -> None:
            rounds.change(self.guest.key(change.disk), change, *self.guest.apply(change)[1:])

        def _do(self, order: Order | None) -> None:
            if order is not None:
                self._back_up(order)
                if order.again:
                    self._back_up(Order())

        def _back_up(self, order: Order) -> None:
            try:
                self._backed_up(order)
            except Exception as error:
                failed(error)
                raise

        def _backed_up(self, order: Order) -> None:
            frozen = self.guest.frozen()

            def happens() -> None:
                for each in order.meanwhile:
                    self._change(each)

            outcome = rounds.back_up(full=order.full, trouble=order.trouble, meanwhile=happens)
            words = f"{order} -> {outcome.failure or outcome.modes}"
            said(words)
            assert rounds.left() == [], words
            if outcome.point is None:
                assert order.trouble.name in rounds.may_fail, words
                return
            if outcome.snapshot_replaced:
                frozen = self.guest.frozen()
            assert rounds.restores(outcome.point, frozen) == [], words
            if order.full:
                assert set(outcome.modes.values()) == {"full"}, words
            self.points.append((outcome.point, frozen))

        def teardown(self) -> None:
            for point, frozen in self.points:
                assert rounds.restores(point, frozen) == [], "an earlier point has changed"

    return BackupsOfOneVm
