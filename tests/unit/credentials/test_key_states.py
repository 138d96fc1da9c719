# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_credentials.domain.key import Key, KeyState, uses

pytestmark = pytest.mark.unit

IDS = st.sampled_from("abcdef")


@given(st.sets(IDS, min_size=1), st.dictionaries(IDS, st.integers(1, 5)))
def test_every_credential_is_under_a_key_that_is_told_of(there, counts):
    active = min(there)
    told = uses(active, [Key(each) for each in sorted(there, reverse=True)], counts)
    assert told[0].key.key_id == active
    assert told[0].state is KeyState.ACTIVE
    assert {each.key.key_id: each.credential_count for each in told if each.credential_count} == counts
    assert {each.key.key_id for each in told} == there | {*counts}
    for each in told[1:]:
        expected = {
            (True, True): KeyState.DECRYPT_ONLY,
            (True, False): KeyState.RETIRED,
            (False, True): KeyState.MISSING,
        }
        assert each.state is expected[each.key.key_id in there, each.key.key_id in counts]
