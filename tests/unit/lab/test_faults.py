# SPDX-License-Identifier: Apache-2.0
"""Faults on order come at the ordered call and no other."""

from __future__ import annotations

import pytest

from sendense_lab.vcenter.faults import FaultPlan, PlannedFault

pytestmark = pytest.mark.unit


def happens(plan: FaultPlan, calls: int, operation: str = "Login") -> list[str]:
    return [found.fault if (found := plan.due(operation)) else "" for _ in range(calls)]


def test_a_fault_comes_from_the_ordered_call_on_as_often_as_ordered() -> None:
    plan = FaultPlan()
    plan.add(PlannedFault("Login", "x", at_call=2, times=2))
    assert happens(plan, 5) == ["", "x", "x", "", ""]


def test_other_operations_do_not_count() -> None:
    plan = FaultPlan()
    plan.add(PlannedFault("Login", "x", at_call=2))
    assert happens(plan, 3, "Logout") == ["", "", ""]
    assert happens(plan, 3) == ["", "x", ""]


def test_each_order_counts_calls_by_itself() -> None:
    plan = FaultPlan()
    plan.add(PlannedFault("Login", "x", at_call=1))
    plan.add(PlannedFault("Login", "y", at_call=3))
    assert happens(plan, 4) == ["x", "", "y", ""]


def test_cleared_faults_do_not_come() -> None:
    plan = FaultPlan()
    plan.add(PlannedFault("Login", "x"))
    plan.clear()
    assert happens(plan, 2) == ["", ""]
