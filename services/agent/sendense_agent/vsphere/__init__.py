# SPDX-License-Identifier: Apache-2.0
"""The vCenter, by pyvmomi: sessions, VMs, snapshots, changed areas."""

from sendense_agent.vsphere.checks import check_machine
from sendense_agent.vsphere.datastore_files import folder
from sendense_agent.vsphere.disks import VirtualDisk
from sendense_agent.vsphere.inventory import virtual_machines
from sendense_agent.vsphere.machine import Machine, Preflight, find_machine
from sendense_agent.vsphere.places import Place, Space, datastores_of, host_of, place, space_on
from sendense_agent.vsphere.session import Session, open_session
from sendense_agent.vsphere.snapshot import ChangeIdRejectedError, Snapshot
from sendense_agent.vsphere.tls import VcenterTarget

__all__ = [
    "ChangeIdRejectedError",
    "Machine",
    "Place",
    "Preflight",
    "Session",
    "Snapshot",
    "Space",
    "VcenterTarget",
    "VirtualDisk",
    "check_machine",
    "datastores_of",
    "find_machine",
    "folder",
    "host_of",
    "open_session",
    "place",
    "space_on",
    "virtual_machines",
]
