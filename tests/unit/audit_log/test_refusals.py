# SPDX-License-Identifier: Apache-2.0
"""Refusals that are recorded one by one: nobody uses up what is there for others."""

from __future__ import annotations

import pytest

from sendense_common.audit_log.refusals import RefusalBudget

pytestmark = pytest.mark.unit


def test_who_is_refused_often_hides_nobody_else() -> None:
    budget = RefusalBudget(lambda: 0)
    assert sum(budget.take("token:eve") for _ in range(5000)) == 1000
    assert sum(budget.take("nobody", f"ipv4:10.0.0.1:{port}") for port in range(5000)) == 100
    assert sum(budget.take(f"unproven:site-{number}", "10.0.0.2:22") for number in range(300)) == 100
    for actor, address in (("token:ci", ""), ("nobody", "ipv4:10.0.0.3:7"), ("unproven:paris", "")):
        assert budget.take(actor, address)
    skipped = budget.skipped()
    assert skipped is not None
    assert (skipped.count, skipped.most, skipped.most_count) == (9100, "ipv4:10.0.0.1", 4900)
    assert budget.skipped() is None


def test_invented_names_and_addresses_get_no_more_than_one_who_has_a_name() -> None:
    now_us = 0
    budget = RefusalBudget(lambda: now_us)
    assert sum(budget.take(f"unproven:site-{number}") for number in range(5000)) == 1000
    assert not budget.take("nobody", "ipv4:10.0.0.1:1")
    assert budget.take("token:ci")
    assert len(budget._nameless) <= 256
    now_us = 60_000_000
    assert sum(budget.take("nobody", f"ipv4:10.0.{number}.1:1") for number in range(100)) == 10
