# SPDX-License-Identifier: Apache-2.0
"""What a service has said in its log since it was started; before that are the words of older starts."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 1 << 20
_STOPS = re.compile(r" ERROR sendense_common\.service\[\d+\] \S+ stops: (\w+): (.*)")
# Such a service is started again, and what it misses may come.
_MAY_COME = frozenset({"SERVICE_UNAVAILABLE"})


@dataclass(frozen=True)
class ServiceLog:
    """One service's, from one start on."""

    file: Path
    since_bytes: int
    """How long the file was before."""

    @classmethod
    def from_now_on(cls, file: Path) -> ServiceLog:
        """What will be said."""
        return cls(file, file.stat().st_size if file.exists() else 0)

    def reason_to_stop(self) -> str:
        """Why one of its processes cannot run, and never will as things are; empty when none has said so."""
        said = (_STOPS.search(line) for line in self._lines())
        return next((found[2].strip() for found in said if found and found[1] not in _MAY_COME), "")

    def trouble(self) -> str:
        """The most telling line: why a process stops, else the last error, else the last line."""
        lines = self._lines()
        stops = [found[2].strip() for line in lines if (found := _STOPS.search(line))]
        errors = [line for line in lines if " ERROR " in line]
        return next((each[-1] for each in (stops, errors, lines) if each), "")

    def _lines(self) -> list[str]:
        with contextlib.suppress(OSError), self.file.open("rb") as log:
            log.seek(self.since_bytes)
            return log.read(_TAIL_BYTES).decode(errors="replace").strip().splitlines()
        return []
