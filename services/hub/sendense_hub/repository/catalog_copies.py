# SPDX-License-Identifier: Apache-2.0
"""Copies of the hub's catalog in a repository: ROOT/hub-catalogs/<hub's ID>/<moment>.sqlite. Blocks.

A few are kept: the newest ones, and the newest of each of the last days, for what is noticed late.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from sendense_common.paths import private_dir
from sendense_hub.repository import durable
from sendense_hub.repository.layout import CATALOGS, Repository, unavailable

_NEWEST_KEPT = 3
_DAYS_KEPT = 7
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_SUFFIX = ".sqlite"


def store(repository: Repository, hub_id: str, copy: Path, moment: datetime.datetime) -> Path:
    """Puts a copy into a repository, durable, or leaves things as they were; removes those that are too many.

    Args:
        repository: where.
        hub_id: of the hub that the catalog is of.
        copy: the file.
        moment: when it was made; UTC.

    Raises:
        SendenseError: REPOSITORY_UNAVAILABLE, REPOSITORY_FULL.
    """
    repository.space()  # an unmounted one gets none
    directory = repository.root / CATALOGS / hub_id
    kept = directory / f"{moment.strftime(_STAMP)}{_SUFFIX}"
    aside = directory / ".new"
    try:
        private_dir(directory)
        with copy.open("rb") as source, _private(aside) as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        aside.rename(kept)
        durable.sync_dirs(directory, up_to=repository.root)
        for name in too_many(path.name for path in _copies(directory)):
            (directory / name).unlink()
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise unavailable(directory, error) from error
    return kept


def newest(root: Path) -> dict[str, Path]:
    """The newest copy of each hub's catalog in the repository at `root`, by the hub's ID."""
    found = {}
    for directory in sorted((root / CATALOGS).glob("*/")):
        if copies := _copies(directory):
            found[directory.name] = copies[-1]
    return found


def too_many(names: Iterable[str]) -> list[str]:
    """Those of the copies that are not kept any more."""
    newest_first = sorted(names, reverse=True)
    days: dict[str, str] = {}
    for name in newest_first:
        days.setdefault(name[:8], name)
    kept = {*newest_first[:_NEWEST_KEPT], *list(days.values())[:_DAYS_KEPT]}
    return [name for name in newest_first if name not in kept]


def _copies(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob(f"*{_SUFFIX}") if path.is_file())


def _private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb")
