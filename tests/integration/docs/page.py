# SPDX-License-Identifier: Apache-2.0
"""Pages of the documentation, and running what they say."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def section(page: str, title: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    text = (ROOT / page).read_text()
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no section {title!r}"
    return found[1]


def commands(page: str, title: str) -> list[str]:
    """The blocks of a section that are marked as `sh`: those that can be run as they stand."""
    return re.findall(r"^```sh\n(.*?)^```", section(page, title), re.DOTALL | re.MULTILINE)


def run(script: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """The script in a shell that stops at the first error, with no more of an environment than it needs."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": os.environ["PATH"], **{name: str(value) for name, value in variables.items()}},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
