# SPDX-License-Identifier: Apache-2.0
"""Scenarios: what a vCenter holds and how it behaves, what happens meanwhile, what a backup must say then."""

from sendense_lab.scenarios.library import find, shipped
from sendense_lab.scenarios.model import Scenario, ScenarioError
from sendense_lab.scenarios.player import Player, load
from sendense_lab.scenarios.reader import read

__all__ = ["Player", "Scenario", "ScenarioError", "find", "load", "read", "shipped"]
