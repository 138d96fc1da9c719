# SPDX-License-Identifier: Apache-2.0
"""Backups whose disks are hard to read: a session that ends on the way, and disks that only VDDK reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import ssl
import uuid
from pathlib import Path

import pytest
from tests.contract.stand_in_nbdkit import Library, install
from tests.integration.agent.kit import WITHIN_S
from tests.integration.agent.site_kit import MIB, Site
from tests.integration.credentials.kit import PASSWORD, USERNAME

from sendense.agent.v1 import agent_service_pb2
from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_agent.config import load_config

pytestmark = pytest.mark.integration

SIZE = 3 * MIB + 512


async def test_rule_11_a_session_that_ends_in_the_middle_of_a_copy_is_renewed_and_the_copy_is_identical(
    site: Site,
):
    vm = await site.lab.add_vm(f"long-{uuid.uuid4().hex[:8]}", [SIZE])
    data = hashlib.shake_128(b"long").digest(SIZE)
    await site.lab.guest_write(vm.name, vm.disks[0], 0, data)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    await backup.stream.tell(limit=pb.LimitRate(bytes_per_second=MIB))
    async with backup.exports(plan):
        await backup.until(
            lambda event: event.HasField("progress") and event.progress.disks[0].read_bytes >= MIB
        )
        await site.lab.command("expire_sessions")
        copied = await backup.until(lambda event: event.HasField("disk_done"))
        assert copied.disk_done.progress.read_bytes == SIZE
        await backup.until(lambda event: event.HasField("copied"))
    await backup.stream.tell(committed=pb.CommitPoint(point_id="p"))
    assert (await backup.rest())[-1].done.snapshot_removed
    assert await backup.stored() == {vm.disks[0]: data}
    assert (await site.counters())["logins"] == 2
    await site.nothing_left(vm)


def with_library(site: Site, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets VDDK's stand-in up at a site, for the one disk of one VM; returns its record."""
    libdir = site.directory / "vddk"
    libdir.mkdir()
    nbdkit = shutil.which("nbdkit")
    assert nbdkit is not None
    der = ssl.PEM_cert_to_DER_cert(site.lab.server_certificate.read_text())
    library = Library(
        nbdkit=nbdkit,
        libdir=str(libdir),
        user=USERNAME,
        password=PASSWORD,
        thumbprint=hashlib.sha1(der).digest().hex(":").upper(),
        disks={
            f"[datastore1] {name}/{name}.vmdk": str(
                site.lab.ca_file.parent / "datastore" / name / f"{name}-flat.vmdk"
            )
        },
        record=str(site.directory / "record"),
    )
    monkeypatch.setenv("PATH", f"{install(libdir, library)}:{os.environ['PATH']}")
    dataclasses.replace(load_config(site.paths), vddk_libdir=str(libdir)).save(site.paths)
    return site.directory / "record"


async def test_rule_25_with_vddk_a_disk_on_vsan_is_backed_up_and_without_it_it_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    vm = await site.lab.add_vm(f"vsan-{uuid.uuid4().hex[:8]}", [SIZE])
    data = hashlib.shake_128(b"vsan").digest(SIZE)
    await site.lab.guest_write(vm.name, vm.disks[0], 0, data)
    await site.lab.command("set", datastore_type="vsan")
    try:
        refused = await (await site.begin(vm)).failed()
        assert refused.failure.reason == Reason.REASON_DISK_NEEDS_VDDK
        assert (await site.counters()).get("call CreateSnapshot_Task", 0) == 0

        record = with_library(site, vm.name, monkeypatch)
        backup = await site.begin(vm)
        plan, events = await backup.to_the_end()
        assert events[-1].done.snapshot_removed
        assert await backup.stored() == {vm.disks[0]: data}
        (asked,) = [json.loads(line) for line in record.read_text().splitlines()]
        assert asked["given"]["vm"] == f"moref={vm.moref}"
        assert asked["given"]["snapshot"] == plan.snapshot_moref
        assert asked["given"]["port"] == str(site.lab.port)
        assert (await site.counters()).get("folder bytes", 0) < MIB  # only descriptors and NVRAM
        request = agent_service_pb2.CheckVirtualMachineRequest(
            vcenter=await site.access(Operation.OPERATION_INVENTORY),
            vm_instance_uuid=vm.instance_uuid,
            vm_name=vm.name,
            hub_id="hub-1",
        )
        findings = (await site.stub.CheckVirtualMachine(request, timeout=WITHIN_S)).findings
        (disk,) = [each for each in findings if each.name.startswith("disk.")]
        assert "is read with VDDK" in disk.finding
    finally:
        await site.lab.command("set", datastore_type="VMFS")
    await site.nothing_left(vm)


async def test_a_vcenter_whose_files_cannot_be_read_fails_its_test(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    others = site.directory / "others"
    others.mkdir()
    for each in ("setpriv", "nbdinfo"):
        found = shutil.which(each)
        assert found is not None
        (others / each).symlink_to(found)
    monkeypatch.setenv("PATH", str(others))
    request = agent_service_pb2.TestVcenterRequest(vcenter=await site.access(Operation.OPERATION_TEST))
    with pytest.raises(Exception, match="nbdkit is not installed"):
        await site.stub.TestVcenter(request, timeout=WITHIN_S)
