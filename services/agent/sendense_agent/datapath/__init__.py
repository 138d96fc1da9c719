# SPDX-License-Identifier: Apache-2.0
"""Copies disks: nbdkit reads the source, one mover process per disk writes it to the hub."""

from sendense_agent.datapath.movers import Mover, start_mover
from sendense_agent.datapath.order import CopyOrder
from sendense_agent.datapath.source import Source, datastore_source

__all__ = ["CopyOrder", "Mover", "Source", "datastore_source", "start_mover"]
