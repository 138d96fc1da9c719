# SPDX-License-Identifier: Apache-2.0
"""What an invitation's code is, and what comes of its being shown."""

from __future__ import annotations

import os

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.domain.invitations import (
    APPROVAL_FOR_US,
    APPROVED,
    CODE_FOR_US,
    EXPIRED,
    OPEN,
    PENDING,
    SPENT,
    Invitation,
    ShownKeys,
    WrongCodes,
    code_hash,
    issue,
    new_code,
    show,
)

pytestmark = pytest.mark.unit

SITE, CODE, NOW_US = "paris", "7QX2-A0BC-DEFG", 1_800_000_000_000_000
MINUTE_US = 60_000_000
KEYS = ShownKeys("ssh-ed25519 AAAA", "SHA256:one", b"s" * 32, b"x" * 32)
OTHERS = ShownKeys("ssh-ed25519 BBBB", "SHA256:two", b"t" * 32, b"y" * 32)


def open_invitation() -> Invitation:
    return issue(SITE, code_hash(SITE, CODE), rotates=False, now_us=NOW_US)


def shown(
    found: Invitation | None, code: str = CODE, keys: ShownKeys = KEYS, *, after_us: int = 0
) -> tuple[Invitation | None, SendenseError | None]:
    return show(found, SITE, code_hash(SITE, code), keys, NOW_US + after_us)


def pending() -> Invitation:
    kept, refusal = shown(open_invitation())
    assert kept is not None
    assert refusal is None
    return kept


def test_a_code_has_sixty_random_bits_in_letters_that_nobody_misreads():
    codes = {new_code(os.urandom) for _ in range(200)}
    assert len(codes) == 200
    letters = "".join(codes).replace("-", "")
    assert set(letters) == set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    assert all([len(part) for part in code.split("-")] == [4, 4, 4] for code in codes)


@pytest.mark.parametrize("typed", ["7qx2a0bcdefg", " 7QX2 AOBC DEFG", "7QX2-A0BC-DEFG"])
def test_case_blanks_and_misread_letters_do_not_matter(typed: str):
    assert code_hash(SITE, typed) == code_hash(SITE, CODE)


@pytest.mark.parametrize(
    "typed", ["", "7QX2-A0BC-DEF", "7QX2-A0BC-DEFGH", "7QX2-A0BC-DEFU", "7QX2-A0BC-DEFé"]
)
def test_what_cannot_be_a_code_is_refused_without_a_look_at_any_invitation(typed: str):
    with pytest.raises(SendenseError) as refused:
        code_hash(SITE, typed)
    assert refused.value.reason == Reason.REASON_INVALID_REQUEST


def test_a_code_is_kept_as_a_hash_that_is_good_for_one_site():
    assert CODE.encode() not in code_hash(SITE, CODE)
    assert code_hash("lyon", CODE) != code_hash(SITE, CODE)


def test_the_right_code_has_the_keys_wait_and_the_same_keys_again_change_nothing():
    first = pending()
    assert (first.state, first.keys) == (PENDING, KEYS)
    assert shown(first, after_us=CODE_FOR_US + MINUTE_US) == (first, None)  # used: its ten minutes are over


@pytest.mark.parametrize(
    ("after_us", "state"), [(CODE_FOR_US - 1, PENDING), (CODE_FOR_US + MINUTE_US, EXPIRED)]
)
def test_a_code_is_good_for_ten_minutes_and_not_for_eleven(after_us: int, state: int):
    kept, refusal = shown(open_invitation(), after_us=after_us)
    assert (kept.state if kept else EXPIRED) == state
    assert (refusal is None) == (state == PENDING)
    if refusal is not None:
        assert refusal.reason == Reason.REASON_INVITATION_INVALID
        assert "in time" in refusal.message


def test_nobody_waits_for_approval_longer_than_an_hour():
    kept, refusal = shown(pending(), after_us=APPROVAL_FOR_US + 1)
    assert kept is None
    assert refusal is not None


def test_one_wrong_code_makes_an_open_invitation_useless_even_for_the_right_one():
    kept, refusal = shown(open_invitation(), "7QX2-A0BC-DEFH")
    assert kept is not None
    assert kept.state == SPENT
    assert refusal is not None
    assert "wrong" not in refusal.message  # who guesses learns nothing
    again, refused = shown(kept)
    assert again is None
    assert refused is not None
    assert "a wrong code was tried" in refused.message


def test_a_wrong_code_does_not_disturb_keys_that_wait():
    waiting = pending()
    kept, refusal = shown(waiting, "7QX2-A0BC-DEFH", OTHERS)
    assert kept is None
    assert refusal is not None
    assert shown(waiting) == (waiting, None)


def test_two_agents_with_one_code_are_both_refused():
    kept, refusal = shown(pending(), keys=OTHERS)
    assert kept is not None
    assert kept.state == SPENT
    assert refusal is not None
    for keys in (KEYS, OTHERS):
        assert shown(kept, keys=keys)[1] is not None


def test_an_approved_code_says_so_to_its_agent_and_to_no_other():
    approved = Invitation(SITE, code_hash(SITE, CODE), APPROVED, False, NOW_US, NOW_US, KEYS)
    assert shown(approved) == (approved, None)
    kept, refusal = shown(approved, keys=OTHERS)
    assert kept is None
    assert refusal is not None


def test_an_unknown_site_is_told_the_same_as_a_wrong_code():
    unknown, wrong = shown(None)[1], shown(pending(), "7QX2-A0BC-DEFH")[1]
    assert unknown is not None
    assert wrong is not None
    assert unknown.to_status() == wrong.to_status()


def test_states_tell_by_themselves_that_their_time_is_over():
    assert open_invitation().at(NOW_US + CODE_FOR_US - 1).state == OPEN
    assert open_invitation().at(NOW_US + CODE_FOR_US).state == EXPIRED
    spent = open_invitation().spent("why")
    assert spent.at(NOW_US + CODE_FOR_US) == spent


def test_wrong_codes_are_limited_in_a_minute_and_a_clock_that_is_set_back_does_not_lock_for_long():
    wrong = WrongCodes(3, MINUTE_US)
    assert [wrong.too_many(NOW_US + n) for n in range(5)] == [False, False, False, True, True]
    assert not wrong.too_many(NOW_US + MINUTE_US + 10)
    assert not wrong.too_many(NOW_US - MINUTE_US)
