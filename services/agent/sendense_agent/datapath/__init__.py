# SPDX-License-Identifier: Apache-2.0
"""Copies disks: nbdkit reads the source, one mover process per disk writes it to the hub."""

from sendense_agent.datapath.movers import Mover, MoverEvent, start_mover
from sendense_agent.datapath.order import CopyOrder
from sendense_agent.datapath.sources import DiskSource, Source

__all__ = ["CopyOrder", "DiskSource", "Mover", "MoverEvent", "Source", "start_mover"]
