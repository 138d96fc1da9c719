# SPDX-License-Identifier: Apache-2.0
"""A backup that has to log in again gets another lease; a hub that lies gets nothing out of it."""

from __future__ import annotations

import hashlib
import socket
import uuid

import pytest
from tests.integration.agent.site_kit import MIB, Backup, Site
from tests.integration.credentials.kit import PASSWORD

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_lab.client import LabMachine

pytestmark = pytest.mark.integration

SIZE = 4 * MIB


async def machine(site: Site) -> tuple[LabMachine, bytes]:
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", [SIZE])
    data = hashlib.shake_128(vm.name.encode()).digest(SIZE)
    await site.lab.guest_write(vm.name, vm.disks[0], 0, data)
    return vm, data


async def wanted(backup: Backup) -> str:
    """The session is gone; the ID of what the worker asks for."""
    await backup.site.lab.command("expire_sessions")
    event = await backup.until(lambda event: event.HasField("lease_wanted"))
    return event.lease_wanted.request_id


async def test_a_session_that_was_lost_in_the_middle_is_opened_with_another_lease(site: Site):
    vm, data = await machine(site)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    await site.lab.command("expire_sessions")
    async with backup.exports(plan):
        await backup.until(lambda event: event.HasField("copied"))
    await backup.stream.tell(committed=pb.CommitPoint(point_id="p"))
    last = (await backup.rest())[-1]
    assert last.done.snapshot_removed
    kinds = [event.WhichOneof("event") for event in backup.heard]
    assert kinds.index("lease_wanted") < kinds.index("logged_in")
    assert await backup.stored() == {vm.disks[0]: data}
    assert (await site.counters())["logins"] == 2
    with site.credentials.database() as database:
        used = database.execute(
            "SELECT count(*) FROM leases WHERE agent_id = ? AND redeem_time_us IS NOT NULL", [site.name]
        ).fetchone()
    assert used == (2,)
    await site.nothing_left(vm)


async def test_a_backup_whose_session_lives_needs_no_lease_more(site: Site):
    """So it does not notice whether there is a credentials service."""
    vm, data = await machine(site)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    site.paths.credentials_socket.unlink()
    async with backup.exports(plan):
        await backup.until(lambda event: event.HasField("copied"))
    await backup.stream.tell(committed=pb.CommitPoint(point_id="p"))
    assert (await backup.rest())[-1].done.snapshot_removed
    assert not any(event.HasField("lease_wanted") for event in backup.heard)
    assert await backup.stored() == {vm.disks[0]: data}


async def test_what_the_hub_says_instead_of_a_lease_is_why_the_backup_stops(site: Site):
    vm, _ = await machine(site)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    backup.lends = False
    async with backup.exports(plan, tell=False) as exports:
        request_id = ""
        await site.lab.command("expire_sessions")
        await backup.stream.tell(exports=pb.OpenExports(exports=exports))
        event = await backup.until(lambda event: event.HasField("lease_wanted"))
        request_id = event.lease_wanted.request_id
        why = SendenseError(Reason.REASON_CREDENTIAL_NOT_GRANTED, "it is not granted any more").to_failure()
        await backup.stream.tell(lease=pb.LeaseGiven(request_id="of another request", failure=why))
        await backup.stream.tell(lease=pb.LeaseGiven(request_id=request_id, failure=why))
        backup.lends = True  # for the removal of the snapshot
        last = (await backup.rest())[-1]
    assert last.failed.failure.reason == Reason.REASON_CREDENTIAL_NOT_GRANTED
    assert last.failed.failure.message == "it is not granted any more"


async def test_a_lease_that_was_used_opens_nothing_a_second_time_and_the_backup_says_so(site: Site):
    vm, _ = await machine(site)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    backup.lends = False
    async with backup.exports(plan, tell=False) as exports:
        await site.lab.command("expire_sessions")
        await backup.stream.tell(exports=pb.OpenExports(exports=exports))
        event = await backup.until(lambda event: event.HasField("lease_wanted"))
        again = pb.LeaseGiven(request_id=event.lease_wanted.request_id, vcenter=backup.start.vcenter)
        await backup.stream.tell(lease=again)
        backup.lends = True
        last = (await backup.rest())[-1]
    assert last.failed.failure.reason == Reason.REASON_LEASE_USED


@pytest.mark.parametrize("lie", ["host", "certificate", "credential"])
async def test_a_hub_that_names_another_vcenter_gets_no_password_sent_there(site: Site, lie: str):
    vm, _ = await machine(site)
    access = await site.access()
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(0.2)
        expected = Reason.REASON_VCENTER_NOT_AS_BOUND
        if lie == "host":
            access.port = trap.getsockname()[1]
        elif lie == "certificate":
            access.port = trap.getsockname()[1]
            access.certificate_sha256 = bytes(32)
        else:
            other = await site.credentials.store(password="of another site", granted=[site.name])
            access.credential_id, expected = other.credential_id, Reason.REASON_LEASE_INVALID
        failed = await (await site.begin(vm, vcenter=access)).failed()
        assert failed.failure.reason == expected
        assert PASSWORD not in str(failed)
        with pytest.raises(TimeoutError):
            trap.accept()
    assert (await site.counters()).get("logins", 0) == 0
