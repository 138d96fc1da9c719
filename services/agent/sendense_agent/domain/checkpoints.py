# SPDX-License-Identifier: Apache-2.0
"""How often what was copied is made durable at the hub: what is not, an interruption costs."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024**2


@dataclass(frozen=True)
class Checkpoints:
    """Of each disk: one is due when either is reached."""

    bytes: int = 256 * MIB
    """Data written since the last one."""
    seconds: float = 10.0
    """Since the last one."""

    def __post_init__(self) -> None:
        """ValueError: one that would never be due, or always."""
        if self.bytes < MIB or self.seconds <= 0:
            raise ValueError("a checkpoint covers at least 1 MiB, and more than 0 seconds")
