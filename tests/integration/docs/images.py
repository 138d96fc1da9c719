# SPDX-License-Identifier: Apache-2.0
"""What an image would hold, as a directory: its code and nothing else of ours, started as in the image."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

from tests.unit.packaging.containers import ROOT, SERVICES, Containerfile

from sendense_common import process

STATE = "/var/lib/sendense"
_IMAGE_PYTHON = "/opt/sendense/bin/python"
_HEALTHY_WITHIN_S = 90.0


class Images:
    """All three below one directory, with `/var/lib/sendense` and `/backup` in it too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        venv = root / "venv"
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", venv], check=True)
        # The packages of this environment, but not its editable install of ours: a line of a .pth file is
        # added to the path, and .pth files in there are not looked at.
        (site,) = venv.glob("lib/python3*/site-packages")
        (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.python = venv / "bin" / "python"
        for service in SERVICES:
            for source, target in Containerfile(service).copies.items():
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, self._inside(service, target), ignore=ignored)

    @property
    def state(self) -> Path:
        """What `/var/lib/sendense` is here."""
        return self.root / "s"

    def environment(self, service: str) -> dict[str, str]:
        """What the image sets, and no more."""
        found = {"PATH": os.environ["PATH"]}
        for each in Containerfile(service).all("ENV"):
            for word in each.words:
                name, _, value = word.partition("=")
                found[name] = self.here(service, value)
        return found

    def command(self, service: str, *arguments: str) -> list[str]:
        """What the image starts; with arguments instead of its own, if there are any."""
        file = Containerfile(service)
        words = [*file.one("ENTRYPOINT").strings, *(arguments or file.one("CMD").strings)]
        return [self.here(service, word) for word in words]

    def health(self, service: str) -> list[str]:
        """What asks for the service's health."""
        return [self.here(service, word) for word in Containerfile(service).one("HEALTHCHECK").strings]

    def run(self, service: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end in the image."""
        return subprocess.run(
            command,
            env=self.environment(service),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextlib.asynccontextmanager
    async def running(self, service: str) -> AsyncIterator[None]:
        """The service until the block ends; it must be healthy by then and end well."""
        with (self.root / f"{service}.log").open("wb") as log:
            child = await asyncio.create_subprocess_exec(
                *process.dying_with_parent(self.command(service)),
                env=self.environment(service),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            async with asyncio.timeout(_HEALTHY_WITHIN_S):
                while (await asyncio.to_thread(self.run, service, self.health(service))).returncode:
                    assert child.returncode is None, (self.root / f"{service}.log").read_text()
            yield
        finally:
            code = await process.stop(child, grace_s=60)
        assert code == 0

    def here(self, service: str, text: str) -> str:
        """A text of the image with the paths that it has here."""
        for there, path in (
            (_IMAGE_PYTHON, self.python),
            ("/opt/sendense", self._inside(service, "/opt/sendense")),
            (STATE, self.state),
            ("/backup", self.root / "backup"),
            ("0.0.0.0:8022", "127.0.0.1:0"),
        ):
            text = text.replace(there, str(path))
        return text

    def _inside(self, service: str, path: str) -> Path:
        return self.root / "images" / service / path.removeprefix("/")
