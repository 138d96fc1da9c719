# SPDX-License-Identifier: Apache-2.0
"""Where the datastore's files can be read, and which disks are one plain file."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.integration.vsphere.kit import GRANULE, fails, freeze, pinned

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import Machine, Session, Snapshot, datastore_files, find_machine, open_session
from sendense_agent.worker.reading import datastore_source
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

NEEDS_VDDK = Reason.REASON_DISK_NEEDS_VDDK
USERNAME, PASSWORD = "administrator@vsphere.local", "correct horse"


async def frozen(
    lab: LabClient, session: Session, name: str, capacity: int = GRANULE
) -> tuple[Machine, Snapshot]:
    vm = await lab.add_vm(name, [capacity])
    machine = await find_machine(session, vm.instance_uuid, name)
    return machine, await freeze(machine)


def descriptor(lab: LabClient, name: str) -> Path:
    return lab.ca_file.parent / "datastore" / name / f"{name}.vmdk"


@pytest.mark.parametrize("name", ["plain", "a b+c", "50% #1", "[x] y", "ümläut 磁盘", "a&b=c?d;e", "it's"])
@pytest.mark.parametrize("by", ["authority", "pin"])
async def test_a_disk_is_read_whatever_its_name_and_size(
    lab: LabClient, session: Session, short_tmp: Path, name: str, by: str
) -> None:
    capacity = 3 * GRANULE + 512
    if by == "pin":
        async with open_session(pinned(lab), USERNAME, PASSWORD) as other:
            await _read(lab, other, short_tmp, f"{name} pinned", capacity)
    else:
        await _read(lab, session, short_tmp, name, capacity)


async def _read(lab: LabClient, session: Session, directory: Path, name: str, capacity: int) -> None:
    _, snapshot = await frozen(lab, session, name, capacity)
    await snapshot.remove()
    data = random.Random(name).randbytes(capacity)
    await lab.guest_write(name, 2000, 0, data)
    machine = await find_machine(session, (await _uuid(session, name)), name)
    snapshot = await freeze(machine)
    await lab.guest_write(name, 2000, 0, b"later")
    disk = datastore_source(session, await snapshot.source_url(snapshot.disks[0]))
    async with disk.open(capacity_bytes=capacity, run_dir=directory / "n", label="x") as source:
        copy = directory / "copy.raw"
        command = ["nbdcopy", f"nbd+unix:///?socket={source.socket}", str(copy)]
        await asyncio.to_thread(subprocess.run, command, check=True)
        assert copy.read_bytes() == data


async def _uuid(session: Session, name: str) -> str:
    from sendense_agent.vsphere import virtual_machines

    (uuid,) = [each.instance_uuid for each in await virtual_machines(session) if each.name == name]
    return uuid


async def test_rule_25_the_extents_name_comes_from_the_descriptor(lab: LabClient, session: Session) -> None:
    _, snapshot = await frozen(lab, session, "renamed")
    file = descriptor(lab, "renamed")
    file.write_text(file.read_text().replace("renamed-flat.vmdk", "other name-flat.vmdk"))
    url = await snapshot.source_url(snapshot.disks[0])
    assert "/folder/renamed/other%20name-flat.vmdk?dcPath=DC0&dsName=datastore1" in url


async def test_rule_25_a_name_in_another_encoding_is_read_as_it_is_meant(
    lab: LabClient, session: Session
) -> None:
    _, snapshot = await frozen(lab, session, "gbk")
    file = descriptor(lab, "gbk")
    words = file.read_text().replace('encoding="UTF-8"', 'encoding="GBK"').replace("gbk-flat", "磁盘-flat")
    file.write_bytes(words.encode("gbk"))
    assert "/folder/gbk/%E7%A3%81%E7%9B%98-flat.vmdk" in await snapshot.source_url(snapshot.disks[0])
    file.write_bytes(words.replace("GBK", "no-such-encoding").encode())
    assert "/folder/gbk/%E7%A3%81%E7%9B%98-flat.vmdk" in await snapshot.source_url(snapshot.disks[0])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RW 128 VMFS", "RW 129 VMFS"),
        ("RW 128 VMFS", "RW 64 VMFS"),
        ("VMFS", "VMFSSPARSE"),
        ("VMFS", "SESPARSE"),
        ("VMFS", "VMFSRDM"),
        ("parentCID=ffffffff", "parentCID=1a2b3c4d"),
        ('VMFS "refused', 'VMFS "vsan://5f0c/refused'),
        ("RW 128", 'RW 64 VMFS "a-flat.vmdk"\nRW 64'),
        ("RW 128", "NOTHING"),
    ],
)
async def test_rule_25_a_descriptor_of_anything_but_one_plain_file_of_that_size_is_refused(
    lab: LabClient, session: Session, old: str, new: str
) -> None:
    name = f"refused-{abs(hash((old, new)))}"
    _, snapshot = await frozen(lab, session, name)
    assert await snapshot.source_url(snapshot.disks[0])
    file = descriptor(lab, name)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with fails(NEEDS_VDDK, "is not one plain file of 65536 bytes"):
        await snapshot.source_url(snapshot.disks[0])


async def test_rule_25_no_descriptor_is_refused(lab: LabClient, session: Session) -> None:
    _, snapshot = await frozen(lab, session, "nothing")
    descriptor(lab, "nothing").unlink()
    with fails(NEEDS_VDDK):
        await snapshot.source_url(snapshot.disks[0])


@pytest.mark.parametrize("changes", [{"vddk_reason": "it is encrypted"}, {"file_name": "no brackets.vmdk"}])
async def test_rule_25_a_disk_that_needs_vddk_has_no_address(
    lab: LabClient, session: Session, changes: dict[str, Any]
) -> None:
    _, snapshot = await frozen(lab, session, f"vddk-{''.join(changes)}")
    with fails(NEEDS_VDDK):
        await snapshot.source_url(dataclasses.replace(snapshot.disks[0], **changes))


async def test_rule_25_a_vcenter_that_ignores_ranges_is_refused_before_anything_is_read(
    lab: LabClient, session: Session
) -> None:
    _, snapshot = await frozen(lab, session, "no ranges", 2 * GRANULE)
    await lab.inject_fault("GET /folder", "whole", at_call=2)  # the first one is for the descriptor
    with fails(Reason.REASON_SOURCE_IGNORES_RANGES, "no ranges-flat.vmdk .*HTTP 200 for") as caught:
        await snapshot.source_url(snapshot.disks[0])
    assert "proxy" in caught.value.remedy
    assert not caught.value.retryable
    assert await snapshot.source_url(snapshot.disks[0])


async def test_a_file_that_is_too_short_is_told_from_ranges_that_are_ignored(
    lab: LabClient, session: Session, short_tmp: Path
) -> None:
    _, snapshot = await frozen(lab, session, "short", 2 * GRANULE)
    descriptor(lab, "short").with_name("short-flat.vmdk").write_bytes(bytes(512))
    disk = datastore_source(session, await snapshot.source_url(snapshot.disks[0]))
    with fails(Reason.REASON_DISK_MISMATCH, "has 512 bytes"):
        async with disk.open(capacity_bytes=2 * GRANULE, run_dir=short_tmp / "n", label="x"):
            pass


async def test_rule_11_a_session_that_ended_is_opened_again_for_files_too(
    lab: LabClient, session: Session
) -> None:
    _, snapshot = await frozen(lab, session, "expired")
    await lab.inject_fault("GET /folder", "401")
    logins = (await lab.counters())["logins"]
    assert await snapshot.source_url(snapshot.disks[0])
    assert (await lab.counters())["logins"] == logins + 1


async def test_a_file_that_breaks_off_is_read_again_and_one_that_fails_is_said(
    lab: LabClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastore_files, "_PAUSES_S", (0.01, 0.01))
    machine, _ = await frozen(lab, session, "broken")
    whole = await machine.nvram()
    await lab.inject_fault("GET /folder", "drop", times=2)
    assert await machine.nvram() == whole != b""
    await lab.inject_fault("GET /folder", "drop", times=3)
    with fails(Reason.REASON_SOURCE_READ_FAILED, "the NVRAM file cannot be read .* broke off after"):
        await machine.nvram()
    await lab.inject_fault("GET /folder", "500", times=2)
    assert await machine.nvram() == whole
    await lab.inject_fault("GET /folder", "500", times=3)
    with fails(Reason.REASON_SOURCE_READ_FAILED, "the NVRAM file cannot be read .*HTTP 500") as caught:
        await machine.nvram()
    assert caught.value.remedy == "Look at the vCenter's log."


async def test_a_datastores_name_and_path_are_told_apart() -> None:
    assert datastore_files.split("[data store (1)] a/b c.vmdk") == ("data store (1)", "a/b c.vmdk")
    assert datastore_files.split("[d] [x] y/z.vmdk") == ("d", "[x] y/z.vmdk")
    assert datastore_files.sibling("[d] a/b.vmx", "c.nvram") == "[d] a/c.nvram"
    assert datastore_files.sibling("[d] b.vmx", "c.nvram") == "[d] c.nvram"
