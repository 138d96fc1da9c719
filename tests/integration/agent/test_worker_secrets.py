# SPDX-License-Identifier: Apache-2.0
"""The password on its way: whole, and nowhere that others can read."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

import pytest
from tests.integration.agent.kit import WITHIN_S
from tests.integration.agent.site_kit import MIB, Site
from tests.integration.credentials.kit import PASSWORD

from sendense.agent.v1 import agent_service_pb2
from sendense.agent.v1 import backup_pb2 as pb
from sendense.credentials.v1.operation_pb2 import Operation

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "password",
    ["+-\"\\'#$`&<>%s{}", " blanks before and after ", "-" * 128, "pässwörd ☃ 密码"],
    ids=["signs", "blanks", "long", "not ASCII"],
)
async def test_ff23_passwords_of_all_kinds_open_the_vcenter(site: Site, password: str):
    await site.lab.command("set_password", password=password)
    try:
        request = agent_service_pb2.TestVcenterRequest(
            vcenter=await site.access(Operation.OPERATION_TEST, password)
        )
        tested = await site.stub.TestVcenter(request, timeout=WITHIN_S)
    finally:
        await site.lab.command("set_password", password=PASSWORD)
    assert tested.vcenter_uuid
    assert (await site.counters()).get("logins refused", 0) == 0


async def test_ff22_no_command_line_environment_file_or_log_has_a_password_or_session(
    site: Site, capfd: pytest.CaptureFixture[str]
):
    vm = await site.lab.add_vm(f"vm-{uuid.uuid4().hex[:8]}", [MIB])
    await site.lab.guest_write(vm.name, vm.disks[0], 0, b"x" * MIB)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    await backup.stream.tell(limit=pb.LimitRate(bytes_per_second=1))
    async with backup.exports(plan):
        for _ in range(3):
            await backup.until(lambda event: event.HasField("progress"))
        words = _words_of_processes(site.paths.run)
        files = [each.read_bytes() for each in site.paths.state.rglob("*") if each.is_file()]
        await backup.cancel()
        await backup.failed()
    for program in (b"sendense_agent.worker", b"nbdkit", b"datapath.mover"):
        assert any(program in each for each in words), program
    for found in (*words, *files, "".join(capfd.readouterr()).encode()):
        assert PASSWORD.encode() not in found
        assert b"vmware_soap_session" not in found


def _words_of_processes(directory: Path) -> list[bytes]:
    """Command lines and environments of those that name a directory, and of their children."""
    lines: dict[str, bytes] = {}
    parents: dict[str, str] = {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with contextlib.suppress(OSError):
                lines[each.name] = (each / "cmdline").read_bytes()
                parents[each.name] = (each / "stat").read_text().rpartition(")")[2].split()[1]
    ours = {pid for pid, line in lines.items() if str(directory).encode() in line}
    ours |= {pid for pid, parent in parents.items() if parent in ours}
    found = [lines[pid] for pid in ours]
    for pid in ours:
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/environ").read_bytes())
    return found
