# SPDX-License-Identifier: Apache-2.0
"""Reads Containerfiles and compose.yaml as far as the tests need."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
SERVICES = ("hub", "agent", "credentials")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Containerfile."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The rest as a shell would split it, without flags."""
        return [word for word in shlex.split(self.rest) if not word.startswith("--")]

    @property
    def strings(self) -> list[str]:
        """The JSON list at its end."""
        found = json.loads(self.rest[self.rest.index("[") :])
        assert all(isinstance(each, str) for each in found)
        return list(found)


class Containerfile:
    """A parsed file."""

    def __init__(self, service: str) -> None:
        self.path = ROOT / "services" / service / "Containerfile"
        lines = [line for line in self.path.read_text().splitlines() if not line.startswith("#")]
        text = "\n".join(lines).replace("\\\n", " ")
        self.instructions = [
            Instruction(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()
        ]

    def all(self, name: str) -> list[Instruction]:
        """The instructions of one name, in order."""
        return [each for each in self.instructions if each.name == name]

    def one(self, name: str) -> Instruction:
        """The only instruction of a name."""
        (found,) = self.all(name)
        return found

    @property
    def copies(self) -> dict[str, str]:
        """What is copied from the checkout: source to target."""
        return {
            each.words[0]: each.words[1] for each in self.all("COPY") if not each.rest.startswith("--from=")
        }

    @property
    def packages(self) -> set[str]:
        """Debian packages of all stages."""
        text = " ".join(each.rest for each in self.all("RUN"))
        found = re.findall(r"apt-get install ([^&]*)", text)
        return {word for words in found for word in words.split() if not word.startswith("--")}

    @property
    def made_directories(self) -> set[str]:
        """Directories that are made for the service's user."""
        (made,) = re.findall(r"install -d -m 0700 -o sendense -g sendense ([^&]*)", self.all("RUN")[-1].rest)
        return set(made.split())


def compose() -> dict[str, Any]:
    """compose.yaml."""
    content = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert isinstance(content, dict)
    return content


def mounts(service: str) -> dict[str, tuple[str, bool]]:
    """Volumes and directories of the host in a service: where, to (name, whether it is read-only)."""
    found = {}
    for each in compose()["services"][service]["volumes"]:
        if isinstance(each, dict):
            found[each["target"]] = (each["source"], each.get("read_only", False))
        else:
            name, where, *mode = each.split(":")
            found[where] = (name, mode == ["ro"])
    return found
