# SPDX-License-Identifier: Apache-2.0
"""A log as tests read it, and a disk that has no room for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from sendense_common import audit_log
from sendense_common.audit_log import AuditLog, Record


def records(log: AuditLog, act: str) -> list[Record]:
    """All of an act, oldest first."""
    return [each for each in log.entries() if isinstance(each, Record) and each.act == act]


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """Nothing can be recorded in the block."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_log.AuditLog, "_append", full)
        yield
