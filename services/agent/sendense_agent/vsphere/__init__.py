# SPDX-License-Identifier: Apache-2.0
"""The vCenter, by pyvmomi: sessions, VMs, snapshots, changed areas."""

from sendense_agent.vsphere.checks import check_machine
from sendense_agent.vsphere.datastore_files import folder
from sendense_agent.vsphere.disks import VirtualDisk
from sendense_agent.vsphere.faults import REFUSED_LOGIN
from sendense_agent.vsphere.hub_snapshots import hub_snapshots
from sendense_agent.vsphere.inventory import virtual_machines
from sendense_agent.vsphere.machine import Machine, Preflight, find_machine
from sendense_agent.vsphere.places import Place, Space, datastores_of, host_of, place, space_on
from sendense_agent.vsphere.privileges import missing_privileges
from sendense_agent.vsphere.session import Secrets, Session, open_session
from sendense_agent.vsphere.snapshot import ChangeIdRejectedError, Snapshot
from sendense_agent.vsphere.tls import VcenterTarget

__all__ = [
    "REFUSED_LOGIN",
    "ChangeIdRejectedError",
    "Machine",
    "Place",
    "Preflight",
    "Secrets",
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
    "hub_snapshots",
    "missing_privileges",
    "open_session",
    "place",
    "space_on",
    "virtual_machines",
]
