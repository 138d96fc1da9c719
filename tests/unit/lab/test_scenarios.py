# SPDX-License-Identifier: Apache-2.0
"""Scenario files: those that are shipped can be read, what is wrong is said, the page names every key."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from sendense_lab import main
from sendense_lab.accept import CHECKS
from sendense_lab.scenarios import ScenarioError, find, model, read, shipped
from sendense_lab.scenarios.reader import area, size
from sendense_lab.vcenter.datastore import DatastoreSpec
from sendense_lab.vcenter.events import PlannedEvent
from sendense_lab.vcenter.faults import PlannedFault
from sendense_lab.vcenter.virtual_disk import DiskSpec

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).parents[3] / "docs" / "scenarios.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))

BACKUP = 'vm = "web"'
GOOD = """
title = "t"
[outside]
cannot = "c"
[[vm]]
name = "web"
disks = [{ capacity_bytes = "1MiB" }]
[[backup]]
vm = "web"
expect = { state = "succeeded" }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "scenario.toml"


@pytest.mark.parametrize("name", list(shipped()))
def test_every_scenario_that_is_shipped_can_be_read(name: str) -> None:
    scenario = read(find(name))
    assert scenario.backup
    assert len(scenario.title) < 100


def test_the_example_on_the_page_is_a_scenario(file: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    file.write_text(example)
    assert read(file).backup[0].expect.warnings == ["snapshot_replaced"]


@pytest.mark.parametrize(
    "kind",
    [
        model.Scenario,
        model.VcenterPart,
        model.MachinePart,
        model.DiskPart,
        model.BackupPart,
        model.Expected,
        model.ExpectedDisk,
        model.Outside,
        DatastoreSpec,
        DiskSpec,
        PlannedFault,
    ],
)
def test_every_key_is_on_the_page(kind: type) -> None:
    missing = [each.name for each in dataclasses.fields(kind) if each.name not in NAMED]
    assert missing == []


def test_every_key_of_an_event_is_on_the_page() -> None:
    assert {each.name for each in dataclasses.fields(PlannedEvent)} - {"arguments"} <= NAMED


def test_every_check_and_option_of_accept_is_on_the_page() -> None:
    assert [each for each in CHECKS if f"`{each}`" not in PAGE] == []
    options = [f"--{name.replace('_', '-')}" for name in inspect.signature(main.accept).parameters]
    assert [each for each in options if each not in PAGE] == []


def test_a_small_scenario_and_what_it_means(file: Path) -> None:
    file.write_text(GOOD)
    scenario = read(file)
    assert scenario.vm[0].disks[0].capacity_bytes == 1 << 20
    assert (scenario.vcenter.version, scenario.fast) == ("8.0", True)
    assert [store.name for store in scenario.datastores] == ["datastore1"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('title = "t"', "", ["title is missing"]),
        ('title = "t"', 'titel = "t"', ["titel is not known", "allowed: about, backup"]),
        ('cannot = "c"', "", ["outside: either `provoke` or `cannot`"]),
        ('name = "web"', 'name = "web"\nhost = "esx9"', ["vm[0].host: 'esx9'", "'esx01.lab.example'"]),
        ('"1MiB"', '"1MB"', ["vm[0].disks[0].capacity_bytes", "1MB", "64KiB"]),
        ('"1MiB"', "true", ["vm[0].disks[0].capacity_bytes: True", "a whole number"]),
        ('"1MiB"', '"1MiB", kind = "thin"', ["vm[0].disks[0].kind: 'thin'", "'flat' or 'sparse'"]),
        ('"1MiB"', '"1MiB", data = ["0"]', ["vm[0].disks[0].data", "1MiB+300KiB"]),
        ("succeeded", "done", ["backup[0].expect.state: 'done'", "'succeeded' or 'failed'"]),
        ('"succeeded"', '"failed"', ["backup[0].expect.reason"]),
        ('vm = "web"', 'vm = "db"', ["backup[0].vm: 'db'", "'web'"]),
        (
            BACKUP,
            BACKUP + '\nbefore = [{ command = "reboot" }]',
            ["backup[0].before[0].command: 'reboot'", "guest_fill"],
        ),
        (
            BACKUP,
            BACKUP + '\nbefore = [{ command = "set_power", vm = "web" }]',
            ["backup[0].before[0]: set_power", "'on'"],
        ),
        (
            BACKUP,
            BACKUP + '\nevents = [{ at = "x", command = "set_power", of = 1 }]',
            ["backup[0].events[0].of is not known", "on"],
        ),
        (
            BACKUP,
            BACKUP + "\nsettings = { speed = 1 }",
            ["backup[0].settings.speed is not known", "areas_per_page"],
        ),
        (BACKUP, BACKUP + '\nfaults = [{ operation = "x" }]', ["backup[0].faults[0].fault is missing"]),
        ("title", "= title", ["scenario.toml"]),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key_and_what_is_allowed(
    file: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ScenarioError) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert [each for each in words if each not in str(caught.value)] == [], str(caught.value)


def test_a_name_that_is_no_scenario() -> None:
    with pytest.raises(ScenarioError, match="plain"):
        find("no-such-scenario")


def test_sizes_and_areas() -> None:
    assert size("512") == 512
    assert size("40MiB + 3KiB+5") == 40 * 1048576 + 3072 + 5
    assert area("1MiB+300KiB") == (1 << 20, 300 << 10)
    for wrong in ("", "MiB", "-1", "1.5MiB", "1MiB+"):
        with pytest.raises(ValueError, match="is not a size"):
            size(wrong)


def test_no_shipped_scenario_goes_by_without_its_licence_and_its_words() -> None:
    for file in shipped().values():
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), file
        assert tomllib.loads(text)["about"].strip(), file
