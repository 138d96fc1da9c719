# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.agent.v1.permits_pb2 import (
    PERMIT_KIND_DATASTORE_SNAPSHOT,
    PERMIT_KIND_HOST_READ,
    PERMIT_KIND_UNSPECIFIED,
)
from sendense_agent.domain.limits import GIB, Limits
from sendense_agent.domain.permits import Ask, PermitBook

pytestmark = pytest.mark.unit

STORE, HOST = PERMIT_KIND_DATASTORE_SNAPSHOT, PERMIT_KIND_HOST_READ
LIMITS = Limits(reads_per_host=2, snapshots_per_datastore=1)


def ask(owner: str, *places: str, permit_id: str = "1", kind: int = STORE) -> Ask:
    return Ask(owner, permit_id, kind, {each: each.upper() for each in places})  # type: ignore[arg-type]


def test_rule_19_no_place_has_more_than_its_limit_and_places_do_not_share_it():
    book = PermitBook(LIMITS)
    assert [book.ask(ask(each, "ds1")) for each in "ab"] == [True, False]
    assert book.ask(ask("c", "ds2"))
    assert [book.ask(ask(each, "esx1", permit_id="2", kind=HOST)) for each in "abc"] == [True, True, False]
    assert book.counts() == {(STORE, "ds1"): 1, (STORE, "ds2"): 1, (HOST, "esx1"): 2}


def test_rule_19_a_permit_that_comes_back_goes_to_who_waited_longest():
    book = PermitBook(LIMITS)
    book.ask(ask("a", "ds1"))
    book.ask(ask("b", "ds1"))
    book.ask(ask("c", "ds1"))
    assert [each.owner for each in book.give_back("a", "1")] == ["b"]
    assert book.give_back("c") == []
    assert book.give_back("b") == []
    assert book.counts() == {}


def test_all_places_or_none_so_that_nobody_waits_for_whom_waits_for_him():
    book = PermitBook(LIMITS)
    book.ask(ask("a", "ds1"))
    assert not book.ask(ask("b", "ds1", "ds2"))
    assert book.counts() == {(STORE, "ds1"): 1}, "b keeps ds2 while it waits for ds1"
    assert [each.owner for each in book.give_back("a")] == ["b"]


def test_who_waits_for_two_places_is_not_overtaken_at_one_of_them():
    book = PermitBook(LIMITS)
    book.ask(ask("a", "ds1"))
    book.ask(ask("b", "ds1", "ds2"))
    assert not book.ask(ask("c", "ds2"))
    assert [each.owner for each in book.give_back("a")] == ["b"]
    assert [each.owner for each in book.give_back("b")] == ["c"]


def test_a_question_can_be_taken_back():
    book = PermitBook(LIMITS)
    book.ask(ask("a", "ds1"))
    book.ask(ask("b", "ds1"))
    assert book.give_back("b", "1") == []
    assert book.give_back("b", "unknown") == []
    assert book.give_back("a") == []
    assert book.ask(ask("c", "ds1"))


def test_what_is_waited_for_is_named():
    book = PermitBook(LIMITS)
    book.ask(ask("a", "ds1"))
    waiting = ask("b", "ds1", "ds2")
    book.ask(waiting)
    assert book.waits_for(waiting) == "datastore DS1, on which 1 VMs have a snapshot of ours at once at most"
    assert book.waits_for(ask("b", "esx1", kind=HOST)).startswith("host ESX1, from which 2 disks")


@pytest.mark.parametrize("wrong", [ask("a"), ask("a", "x", kind=PERMIT_KIND_UNSPECIFIED), ask("b", "y")])
def test_what_asks_for_nothing_or_twice_is_refused(wrong: Ask):
    book = PermitBook(LIMITS)
    book.ask(ask("b", "x"))
    with pytest.raises(ValueError, match="ask"):
        book.ask(wrong)


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from("xyz"), min_size=1)), max_size=30),
    st.randoms(),
)
def test_rule_19_limits_hold_in_any_order_and_everybody_gets_his_turn(asked, random):
    book = PermitBook(LIMITS)
    numbers = itertools.count()
    held: list[Ask] = []
    waiting: list[Ask] = []
    for owner, places in asked:
        one = ask(owner, *places, permit_id=str(next(numbers)))
        (held if book.ask(one) else waiting).append(one)
        assert all(count <= LIMITS.snapshots_per_datastore for count in book.counts().values())
        if held and random.random() < 0.5:
            back = held.pop(random.randrange(len(held)))
            for granted in book.give_back(back.owner, back.permit_id):
                waiting.remove(granted)
                held.append(granted)
    while held:
        back = held.pop()
        for granted in book.give_back(back.owner, back.permit_id):
            waiting.remove(granted)
            held.append(granted)
        assert all(count <= LIMITS.snapshots_per_datastore for count in book.counts().values())
    assert waiting == []
    assert book.counts() == {}


def test_the_floor_is_the_larger_of_bytes_and_share():
    assert Limits().floor(100 * GIB) == 10 * GIB
    assert Limits().floor(1000 * GIB) == 50 * GIB


@pytest.mark.parametrize(
    "wrong",
    [
        {"reads_per_host": 0},
        {"snapshots_per_datastore": -1},
        {"max_snapshot_age_s": 0},
        {"look_every_s": 0},
        {"floor_bytes": -1},
        {"floor_percent": 100},
    ],
)
def test_limits_that_would_stop_every_backup_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="must be"):
        Limits(**wrong)
