# SPDX-License-Identifier: Apache-2.0
"""The vCenter, by pyvmomi: sessions, VMs, snapshots, changed areas."""

from sendense_agent.vsphere.checks import check_machine
from sendense_agent.vsphere.disks import VirtualDisk
from sendense_agent.vsphere.inventory import virtual_machines
from sendense_agent.vsphere.machine import Machine, Preflight, find_machine
from sendense_agent.vsphere.session import Session, open_session
from sendense_agent.vsphere.snapshot import ChangeIdRejectedError, Snapshot
from sendense_agent.vsphere.tls import VcenterTarget

__all__ = [
    "ChangeIdRejectedError",
    "Machine",
    "Preflight",
    "Session",
    "Snapshot",
    "VcenterTarget",
    "VirtualDisk",
    "check_machine",
    "find_machine",
    "open_session",
    "virtual_machines",
]
