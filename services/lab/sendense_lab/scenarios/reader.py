# SPDX-License-Identifier: Apache-2.0
"""A scenario from its file. Whatever is not known is refused, with the place and what is allowed there."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sendense_lab.scenarios.model import Scenario, ScenarioError, Step
from sendense_lab.vcenter.control import COMMANDS, SETTINGS
from sendense_lab.vcenter.events import PlannedEvent
from sendense_lab.vcenter.faults import PlannedFault
from sendense_lab.vcenter.virtual_disk import DiskSpec

_SIZE = re.compile(r"(\d+) ?(B|KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_WORDS = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}
_NOT_FOR_SCENARIOS = {"next_backup", "add_vm", "hold_frozen", "plan_event", "planned_events"}
_BY_FIELDS: dict[str, Iterable[str]] = {
    "set": SETTINGS,
    "add_disk": ["vm", *(each.name for each in dataclasses.fields(DiskSpec))],
    "inject_fault": [each.name for each in dataclasses.fields(PlannedFault)],
}
"""Arguments of commands that take any."""


def read(file: Path) -> Scenario:
    """A scenario.

    Raises:
        ScenarioError: the file cannot be read, or says what cannot be.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{file}: {error}") from error
    try:
        scenario: Scenario = _record(Scenario, table, "")
        _check(scenario)
    except ScenarioError as error:
        raise ScenarioError(f"{file}: {error}") from error
    return scenario


def size(text: str) -> int:
    """Bytes of "40MiB", or of a sum as "40MiB + 512"; ValueError."""
    total = 0
    for part in text.split("+"):
        found = _SIZE.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"{text!r} is not a size such as 512, 64KiB or 40MiB+512")
        total += int(found[1]) * _UNITS[found[2]]
    return total


def area(text: str) -> tuple[int, int]:
    """(offset, length) of "1MiB+300KiB"; ValueError."""
    offset, plus, length = text.partition("+")
    if not plus:
        raise ValueError(f"{text!r} is not an area such as 1MiB+300KiB")
    return size(offset), size(length)


def _record(kind: Any, table: Any, where: str) -> Any:
    """A data class from a table."""
    if not isinstance(table, dict):
        raise _wrong(where, table, "a table")
    if kind is Step or kind is PlannedEvent:
        table = _with_arguments(kind, table, where)
    known = {each.name: each for each in dataclasses.fields(kind)}
    _only(table, known, where)
    for name, each in known.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise ScenarioError(f"{_at(where, name)} is missing")
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            name: value
            if name == "settings" and _settings(value, _at(where, name))
            else _value(hints[name], value, _at(where, name))
            for name, value in table.items()
        }
    )


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value not in arguments:
            raise _wrong(where, value, " or ".join(repr(each) for each in arguments))
        return value
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return [_value(arguments[0], each, f"{where}[{number}]") for number, each in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a table")
        return {name: _value(arguments[1], each, _at(where, name)) for name, each in value.items()}
    return _simple(kind, value, where)


def _simple(kind: Any, value: Any, where: str) -> Any:
    """A number, text, or what it may be of several."""
    kinds = typing.get_args(kind) or (kind,)
    if where.endswith("_bytes") and isinstance(value, str):
        try:
            return size(value)
        except ValueError as error:
            raise ScenarioError(f"{where}: {error}") from error
    if Any in kinds or any(_is(each, value) for each in kinds):
        return value
    raise _wrong(where, value, " or ".join(_WORDS.get(each, str(each)) for each in kinds))


def _is(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _settings(table: Any, where: str) -> bool:
    if not isinstance(table, dict):
        raise _wrong(where, table, "a table")
    _only(table, SETTINGS, where)
    return True


def _with_arguments(kind: Any, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A command's own keys and, apart from them, its arguments, which are written beside them."""
    own = {each.name for each in dataclasses.fields(kind)} - {"arguments"}
    command = table.get("command")
    allowed = sorted(set(COMMANDS) - _NOT_FOR_SCENARIOS)
    if command not in allowed:
        raise _wrong(_at(where, "command"), command, ", ".join(allowed))
    parameters = dict(inspect.signature(COMMANDS[command]).parameters)
    parameters.pop("self")
    names = _BY_FIELDS.get(command, parameters)
    given = {name: value for name, value in table.items() if name not in own}
    _only(given, [*own, *names], where)
    hints = typing.get_type_hints(DiskSpec if command == "add_disk" else COMMANDS[command])
    arguments = {name: _value(hints.get(name, Any), value, _at(where, name)) for name, value in given.items()}
    try:
        inspect.signature(COMMANDS[command]).bind(None, **arguments)
    except TypeError as error:
        raise ScenarioError(f"{where}: {command}: {error}") from error
    return {**{name: table[name] for name in own if name in table}, "arguments": arguments}


def _check(scenario: Scenario) -> None:
    """What one value cannot show."""
    machines = {name for machine in scenario.vm for name in machine.names()}
    stores = {store.name for store in scenario.datastores}
    for number, machine in enumerate(scenario.vm):
        where = f"vm[{number}]"
        _one_of(f"{where}.host", machine.host, ["", *scenario.vcenter.hosts])
        _one_of(f"{where}.datastore", machine.datastore, ["", *stores])
        for place, disk in enumerate(machine.disks):
            _one_of(f"{where}.disks[{place}].datastore", disk.datastore, ["", *stores])
            for text in disk.data:
                try:
                    area(text)
                except ValueError as error:
                    raise ScenarioError(f"{where}.disks[{place}].data: {error}") from error
    for number, backup in enumerate(scenario.backup):
        _one_of(f"backup[{number}].vm", backup.vm, machines)
        if (backup.expect.state == "failed") != bool(backup.expect.reason):
            raise ScenarioError(f"backup[{number}].expect.reason: given if, and only if, state is 'failed'")
    if bool(scenario.outside.provoke) == bool(scenario.outside.cannot):
        raise ScenarioError("outside: either `provoke` or `cannot` is given")


def _one_of(where: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise _wrong(where, value, ", ".join(repr(each) for each in allowed))


def _only(table: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    for name in table:
        if name not in allowed:
            raise ScenarioError(f"{_at(where, name)} is not known; allowed: {', '.join(sorted(allowed))}")


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(where: str, value: Any, allowed: str) -> ScenarioError:
    return ScenarioError(f"{where}: {value!r} is not allowed; allowed: {allowed}")
