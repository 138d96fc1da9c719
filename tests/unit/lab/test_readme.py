# SPDX-License-Identifier: Apache-2.0
"""The lab's README speaks of every command, setting and option that there is."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from sendense_lab import main
from sendense_lab.vcenter.changed_areas import WRONG
from sendense_lab.vcenter.control import SETTINGS, Commands
from sendense_lab.vcenter.events import PlannedEvent
from sendense_lab.vcenter.faults import FOLDER_FAULTS, PlannedFault
from sendense_lab.vcenter.virtual_disk import DiskSpec

pytestmark = pytest.mark.unit

README = (Path(main.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`\n]+)`", README))))


@pytest.mark.parametrize(
    "names",
    [
        [name for name, _ in inspect.getmembers(Commands, inspect.isfunction) if not name.startswith("_")],
        list(SETTINGS),
        [field.name for field in dataclasses.fields(PlannedEvent)],
        [field.name for field in dataclasses.fields(PlannedFault)],
        [field.name for field in dataclasses.fields(DiskSpec)],
        list(WRONG),
        list(FOLDER_FAULTS),
        [f"--{name.replace('_', '-')}" for name in inspect.signature(main.vcenter).parameters],
    ],
    ids=["commands", "settings", "events", "faults", "disks", "wrong areas", "folder faults", "options"],
)
def test_everything_is_in_the_readme(names: list[str]) -> None:
    assert names
    assert [name for name in names if name not in NAMED] == []
