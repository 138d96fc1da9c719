# SPDX-License-Identifier: Apache-2.0
"""The scenarios that come with the lab."""

from __future__ import annotations

from pathlib import Path

from sendense_lab.scenarios.model import ScenarioError

_DIRECTORY = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """Their files by name."""
    return {file.stem: file for file in sorted(_DIRECTORY.glob("*.toml"))}


def find(name_or_file: str) -> Path:
    """A scenario's file, by its path or by the name of one that is shipped; ScenarioError."""
    if (file := shipped().get(name_or_file)) is not None:
        return file
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    raise ScenarioError(f"there is no file and no scenario {name_or_file!r}; shipped: {', '.join(shipped())}")
