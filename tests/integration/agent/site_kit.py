# SPDX-License-Identifier: Apache-2.0
"""A whole site: simulated vCenter, real credentials service, real workers; the test is the hub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.integration.agent.kit import LIMITS, WITHIN_S, Agent, Stream, open_stream, running_agent, start
from tests.integration.credentials.kit import PASSWORD, Service
from tests.integration.datapath.kit import as_raw, new_layer, qemu_nbd
from tests.integration.tunnel.kit import Hub, running_hub, until

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.common.v1.failure_pb2 import Failure
from sendense.credentials.v1.credential_service_pb2 import Endpoint
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_agent.config import AgentConfig
from sendense_agent.control.worker_process import worker_command
from sendense_agent.domain.checkpoints import Checkpoints
from sendense_agent.domain.limits import Limits
from sendense_common.keys import ensure_agent_keys
from sendense_common.paths import AgentPaths, private_dir
from sendense_lab.client import LabClient, LabMachine

MIB = 1024 * 1024


def processes_of(directory: Path) -> list[str]:
    """Command lines of running processes that name a directory."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit() and int(each.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(directory) in words:
                    found.append(words)
    return found


def children(site: Site, word: str) -> list[int]:
    """Processes of the workers' with a word in their command line."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with contextlib.suppress(OSError):
                parent = (each / "stat").read_text().rpartition(")")[2].split()[1]
                jobs = site.agent.jobs._jobs.values()
                pids = {str(job._worker._child.pid) for job in jobs if job._worker is not None}
                if parent in pids and word.encode() in (each / "cmdline").read_bytes():
                    found.append(int(each.name))
    return found


@dataclass
class Site:
    """What a test needs of it."""

    name: str
    agent: Agent
    paths: AgentPaths
    lab: LabClient
    credentials: Service
    hub: Hub
    stub: AgentServiceStub
    directory: Path
    counted_before: dict[str, int]
    layers: dict[int, Path] = field(default_factory=dict)

    async def access(
        self,
        operation: Operation.ValueType = Operation.OPERATION_BACKUP,
        password: str = PASSWORD,
        port: int = 0,
    ) -> VcenterAccess:
        """A lease, and the way to the vCenter, as the operator has bound the credential to it."""
        port = port or self.lab.port
        endpoint = Endpoint(host=self.lab.host, port=port, ca_pem=self.lab.ca_file.read_text())
        credential = await self.credentials.store(password=password, granted=[self.name], endpoint=endpoint)
        return VcenterAccess(
            name="vc1",
            host=self.lab.host,
            port=port,
            ca_pem=self.lab.ca_file.read_text(),
            lease_id=await self.credentials.issue(credential.credential_id, self.name, operation),
            credential_id=credential.credential_id,
        )

    async def begin(self, vm: LabMachine, **changes: Any) -> Backup:
        """Starts a backup of a VM."""
        changes.setdefault("vcenter", await self.access())
        changes.setdefault("vm_instance_uuid", vm.instance_uuid)
        changes.setdefault("vm_name", vm.name)
        wanted = start(**changes)
        return Backup(self, wanted, await open_stream(self.stub, wanted))

    async def counters(self) -> dict[str, int]:
        """What the vCenter has counted in this test; see `LabClient.counters`."""
        now = await self.lab.counters()
        return {name: count - self.counted_before.get(name, 0) for name, count in now.items()}

    async def called(self, method: str) -> None:
        """Returns when a method of the vCenter's was called in this test."""
        async with asyncio.timeout(WITHIN_S):
            while not (await self.counters()).get(f"call {method}"):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)

    async def snapshots(self, vm: LabMachine) -> list[str]:
        return [each["description"] for each in await self.lab.snapshots(vm.name)]

    async def nothing_left(self, vm: LabMachine, *, sessions: int = 0) -> None:
        """No snapshot, session, process, socket or certificate.

        Args:
            vm: whose snapshots count.
            sessions: of workers that were killed, which vCenter ends by itself when they have been idle.
        """
        assert await self.snapshots(vm) == []
        await until(lambda: not processes_of(self.paths.run), "no process of the agent runs", WITHIN_S)
        assert (await self.counters())["sessions"] == sessions
        left = [
            each.name for place in (self.paths.exports_dir, self.paths.run / "n") for each in place.glob("*")
        ]
        assert not left, left


class Backup:
    """One backup as its hub sees it."""

    def __init__(self, site: Site, wanted: pb.BackupStart, stream: Stream) -> None:
        self.site = site
        self.start = wanted
        self.stream = stream
        self.heard: list[pb.RunBackupResponse] = []
        self.lends = True

    @property
    def worker_pid(self) -> int:
        worker = self.site.agent.jobs._jobs[self.start.job_id]._worker
        assert worker is not None
        return worker._child.pid

    async def until(self, found: Callable[[pb.RunBackupResponse], object]) -> pb.RunBackupResponse:
        """Listens to the first such event; `failed` must not come before."""
        while True:
            event = await self.stream.event()
            await self.lend(event)
            self.heard.append(event)
            if found(event):
                return event
            assert event.WhichOneof("event") != "failed", event

    async def lend(self, event: pb.RunBackupResponse) -> None:
        """Another lease for the same credential, as a hub gives it to who asks."""
        if not event.HasField("lease_wanted") or not self.lends:
            return
        request_id = event.lease_wanted.request_id
        access = VcenterAccess.FromString(self.start.vcenter.SerializeToString())
        access.lease_id = await self.site.credentials.issue(access.credential_id, self.site.name)
        await self.stream.tell(lease=pb.LeaseGiven(request_id=request_id, vcenter=access))

    async def until_phase(self, phase: pb.AgentPhase.ValueType) -> None:
        await self.until(lambda event: event.HasField("phase") and event.phase.phase == phase)

    async def until_plan(self) -> pb.BackupPlan:
        return (await self.until(lambda event: event.HasField("plan"))).plan

    async def rest(self) -> list[pb.RunBackupResponse]:
        self.heard += await self.stream.rest(self.lend)
        return self.heard

    async def failed(self) -> pb.BackupFailed:
        last = (await self.rest())[-1]
        assert last.HasField("failed"), last
        return last.failed

    async def interrupted(self) -> Failure:
        """Why it is."""
        return (await self.until(lambda event: event.HasField("interrupted"))).interrupted.failure

    async def cancel(self) -> None:
        await self.stream.tell(cancel=pb.CancelBackup(cause="the test's wish"))

    @contextlib.asynccontextmanager
    async def exports(self, plan: pb.BackupPlan, *, tell: bool = True) -> AsyncIterator[list[pb.DiskExport]]:
        """A layer and a server for each disk; tells the agent where they are."""
        async with contextlib.AsyncExitStack() as stack:
            exports = []
            for disk in plan.disks:
                parent = self.site.layers.get(disk.key)
                incremental = disk.mode == pb.DISK_MODE_INCREMENTAL
                number = f"{disk.key}-{len(list(self.site.directory.glob('*.qcow2')))}"
                layer = self.site.directory / f"{number}.qcow2"
                backing = parent.name if incremental and parent else ""
                await new_layer(layer, disk.capacity_bytes, backing)
                self.site.layers[disk.key] = layer
                await stack.enter_async_context(qemu_nbd(self.site.hub, f"e-{number}", layer))
                exports.append(
                    pb.DiskExport(
                        disk_key=disk.key,
                        export_name=f"e-{number}",
                        capacity_bytes=disk.capacity_bytes,
                        write_zeroes=incremental,
                    )
                )
            if tell:
                await self.stream.tell(exports=pb.OpenExports(exports=exports))
            yield exports

    async def to_the_end(self) -> tuple[pb.BackupPlan, list[pb.RunBackupResponse]]:
        """Does all that a hub does, and commits."""
        plan = await self.until_plan()
        async with self.exports(plan):
            await self.until(lambda event: event.HasField("copied"))
        await self.stream.tell(committed=pb.CommitPoint(point_id="p"))
        return plan, await self.rest()

    async def stored(self) -> dict[int, bytes]:
        """What the layers of each disk hold."""
        return {key: await as_raw(layer) for key, layer in self.site.layers.items()}


@contextlib.asynccontextmanager
async def running_site(
    directory: Path,
    credentials: Service,
    lab: LabClient,
    limits: Limits = LIMITS,
    checkpoints: Checkpoints | None = None,
) -> AsyncIterator[Site]:
    """Until the block ends. Only the vCenter and the credentials service were there before."""
    name = f"site-{uuid.uuid4().hex[:8]}"  # the credentials service knows each by its keys
    paths = AgentPaths(private_dir(directory / "a"), private_dir(directory / "a" / "run"))
    await lab.command("clear_faults")
    for method in ("ReconfigVM_Task", "CreateSnapshot_Task", "RemoveSnapshot_Task"):
        await lab.command("delay_task", method=method, seconds=0)
    await lab.command("expire_sessions")
    counted = await lab.counters()
    async with running_hub(private_dir(directory / "h")) as hub:
        tunnel = hub.enrol(name, "ssh")
        config = AgentConfig(name, tunnel.host, tunnel.port, tunnel.hub_host_key, limits)
        config = replace(config, checkpoints=checkpoints or Checkpoints())
        config.save(paths)
        for suffix in ("", ".pub"):
            key = tunnel.private_key_file.with_name(tunnel.private_key_file.name + suffix)
            key.rename(paths.state / f"ssh_ed25519_key{suffix}")
        await credentials.register(name, ensure_agent_keys(paths.lease_keys_file))
        paths.credentials_socket.symlink_to(credentials.paths.agents_socket)
        async with running_agent(directory, worker_command(paths), limits) as agent, agent.stub() as stub:
            yield Site(name, agent, paths, lab, credentials, hub, stub, directory, counted)
