# SPDX-License-Identifier: Apache-2.0
"""Disks to read, each served by an nbdkit of its own on a private unix socket; see `DiskSource`."""

from sendense_agent.datapath.sources.contract import DiskSource, Source
from sendense_agent.datapath.sources.datastore import DatastoreSource, try_the_way
from sendense_agent.datapath.sources.raw_file import FileSource
from sendense_agent.datapath.sources.vddk import DEFAULT_TRANSPORTS, VddkSource
from sendense_agent.datapath.sources.vddk import version as vddk_version

SOURCES: dict[str, type[DiskSource]] = {each.name: each for each in (DatastoreSource, FileSource, VddkSource)}
"""All there are, by name."""

__all__ = [
    "DEFAULT_TRANSPORTS",
    "SOURCES",
    "DatastoreSource",
    "DiskSource",
    "FileSource",
    "Source",
    "VddkSource",
    "try_the_way",
    "vddk_version",
]
