# SPDX-License-Identifier: Apache-2.0
"""A hub in this process around a scripted agent, and one as a process of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tests.integration.hub.scripted_agent import (
    MACHINE,
    MACHINE_NAME,
    SITE,
    VCENTER,
    VCENTER_UUID,
    ScriptedAgent,
    serve_agent,
)

from sendense.credentials.v1 import lease_service_pb2
from sendense.credentials.v1.lease_service_pb2_grpc import (
    LeaseServiceServicer,
    add_LeaseServiceServicer_to_server,
)
from sendense.hub.v1 import backup_service_pb2, job_service_pb2, point_service_pb2, site_service_pb2
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import vcenter_service_pb2 as vcenter_pb
from sendense.hub.v1.backup_service_pb2_grpc import BackupServiceStub
from sendense.hub.v1.job_service_pb2_grpc import JobServiceStub
from sendense.hub.v1.point_service_pb2_grpc import PointServiceStub
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import CredentialsPaths, HubPaths, private_dir
from sendense_hub.catalog import Catalog, jobs, open_catalog, points, sites, vcenters
from sendense_hub.catalog.jobs import Origin
from sendense_hub.clients.leases import Leases
from sendense_hub.domain.job_rules import ENDED
from sendense_hub.domain.point_locks import PointLocks
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs.board import Board
from sendense_hub.jobs.exports import ExportTable
from sendense_hub.jobs.guarded_sites import GuardedSites
from sendense_hub.jobs.reconciliation import Reconciler
from sendense_hub.jobs.runner import Runner
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import AuditPolicy, PartFiles, Repository, open_repository

WITHIN_S = 40.0
NO_AUDIT = AuditPolicy()
SSH_KEY = (
    "ssh-ed25519 " + base64.b64encode(b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(32)).decode()
)


class GenerousLeases(LeaseServiceServicer):
    """Grants all, unless it is told otherwise."""

    def __init__(self) -> None:
        self.issued: list[str] = []
        self.given_back: list[str] = []
        self.refusal: SendenseError | None = None

    async def IssueLease(self, request, context):
        if self.refusal is not None:
            raise self.refusal
        self.issued.append(f"lease {len(self.issued)} for {request.subject_id}")
        return lease_service_pb2.IssueLeaseResponse(lease_id=self.issued[-1])

    async def RevokeLease(self, request, context):
        self.given_back.append(request.lease_id)
        return lease_service_pb2.RevokeLeaseResponse()


@dataclass
class World:
    """Directories of a hub, an agent that is connected, a credentials service that grants every lease."""

    paths: HubPaths
    credentials: CredentialsPaths
    agent: ScriptedAgent
    leases: GenerousLeases = field(default_factory=GenerousLeases)

    @property
    def agent_socket(self) -> Path:
        return self.paths.agents_dir / f"{SITE}.sock"


@contextlib.asynccontextmanager
async def world(short_tmp: Path) -> AsyncIterator[World]:
    """Everything around a hub."""
    paths = HubPaths(short_tmp / "s", short_tmp / "r")
    credentials = CredentialsPaths(short_tmp / "cs", short_tmp / "c")
    for directory in (paths.state, paths.run, paths.exports_dir, paths.agents_dir, credentials.run):
        private_dir(directory)
    made = World(paths, credentials, ScriptedAgent(paths.exports_dir))
    service = rpc.Service(
        "sendense.credentials.v1.LeaseService", add_LeaseServiceServicer_to_server, made.leases
    )
    async with (
        rpc.serve(credentials.hub_socket, [service], stop_grace_s=0),
        serve_agent(made.agent_socket, made.agent),
    ):
        yield made


@dataclass
class Hub:
    """The rooms of a hub, without its gRPC services and its queue."""

    world: World
    catalog: Catalog
    repository: Repository
    workshop: Workshop
    runner: Runner
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def agent(self) -> ScriptedAgent:
        return self.world.agent

    def reconciler(self, *, known_vcenters: Collection[str] = (VCENTER,)) -> Reconciler:
        """Of a hub that has just started."""
        return Reconciler(self.workshop, SnapshotSweeper(self.catalog, self.workshop.sites), known_vcenters)

    async def accept(self, mode: pb.BackupMode.ValueType = pb.BACKUP_MODE_AUTO, **changed: Any) -> pb.Job:
        """A job whose turn may come."""
        job = new_job(mode=mode, **changed)
        origin = Origin(str(uuid.uuid4()), "")
        await self.catalog.run(lambda connection: jobs.insert(connection, job, origin))
        return job

    async def run(self, mode: pb.BackupMode.ValueType = pb.BACKUP_MODE_AUTO, **changed: Any) -> pb.Job:
        """A job from its turn to its end."""
        job = await self.accept(mode, **changed)
        async with asyncio.timeout(WITHIN_S):
            await self.runner.run(job.job_id)
        return await self.job(job.job_id)

    async def run_later(self, **changed: Any) -> asyncio.Task[pb.Job]:
        """A job that runs to its end meanwhile."""
        job = await self.accept(**changed)

        async def ended() -> pb.Job:
            async with asyncio.timeout(WITHIN_S):
                await self.runner.run(job.job_id)
            return await self.job(job.job_id)

        return asyncio.create_task(ended())

    async def begin(
        self, mode: pb.BackupMode.ValueType = pb.BACKUP_MODE_AUTO
    ) -> tuple[pb.Job, asyncio.Task[None]]:
        """A job that runs."""
        job = await self.accept(mode)
        task = asyncio.create_task(self.runner.run(job.job_id))
        self.tasks.append(task)
        return job, task

    async def job(self, job_id: str) -> pb.Job:
        """As the catalog has it."""
        return await self.catalog.run(lambda connection: jobs.get(connection, job_id))

    async def points(self) -> list[point_service_pb2.RestorePoint]:
        return await self.catalog.run(lambda connection: points.listed(connection, limit=100))

    async def rows(self) -> list[point_service_pb2.RestorePoint]:
        """Of points in any state."""
        return [
            point
            for state in point_service_pb2.PointState.values()
            for point in await self.catalog.run(
                lambda connection, state=state: points.listed(connection, state=state, limit=100)  # type: ignore[misc]
            )
        ]

    async def assert_nothing_left(self) -> None:
        """No directory, no export, no row, no process."""
        assert files_of(self.repository) == []
        assert await self.rows() == []
        assert list(self.world.paths.exports_dir.iterdir()) == []
        assert qemu_nbd_of(self.world.paths.exports_dir) == []
        assert self.workshop.board.running() == []
        assert vars(self.workshop.exports)["_exports"] == {}


NO_PATIENCE = Patience(absent_s=-1.0, tries=0)


@contextlib.asynccontextmanager
async def hub_of(
    world: World,
    *,
    register: bool = True,
    patience: Patience = NO_PATIENCE,
    audit: AuditPolicy = NO_AUDIT,
) -> AsyncIterator[Hub]:
    """A hub in this process; another one may follow on the same directories.

    It gives a job up at its first failure, unless it has patience.
    """
    async with open_catalog(f"sqlite:///{world.paths.state / 'catalog.sqlite'}") as catalog:
        if register:
            await catalog.run(_register)
        repository = await open_repository("default", world.paths.state / "repository")
        reach = GuardedSites(world.paths.agents_dir, Leases(world.credentials.hub_socket), catalog)
        workshop = Workshop(
            catalog=catalog,
            board=Board(catalog),
            sites=reach,
            exports=ExportTable(),
            locks=PointLocks(),
            repositories={"default": repository},
            exports_dir=world.paths.exports_dir,
            parts=PartFiles(world.paths.unfinished_exports_dir),
            audit=audit,
        )
        runner = Runner(workshop, SnapshotSweeper(catalog, reach), patience)
        hub = Hub(world, catalog, repository, workshop, runner)
        try:
            yield hub
        finally:
            for task in hub.tasks:
                task.cancel()
            await asyncio.gather(*hub.tasks, return_exceptions=True)


def _register(connection: Any) -> None:
    sites.register(connection, SITE, SSH_KEY, "SHA256:x")
    vcenters.add(
        connection,
        vcenter_pb.Vcenter(
            name=VCENTER,
            host="vc.example",
            port=443,
            certificate_sha256=bytes(32),
            credential_id="cred",
            site_name=SITE,
        ),
    )
    vcenters.set_identity(connection, VCENTER, VCENTER_UUID)


def lose_catalog(world: World) -> None:
    """As after a fire: nothing is left but the repository."""
    for path in world.paths.state.glob("catalog.sqlite*"):
        path.unlink()


def new_job(**changed: Any) -> pb.Job:
    """A queued job."""
    facts: dict[str, Any] = {
        "job_id": str(uuid.uuid4()),
        "state": pb.JOB_STATE_QUEUED,
        "phase": pb.JOB_PHASE_QUEUED,
        "mode": pb.BACKUP_MODE_AUTO,
        "quiesce": pb.QUIESCE_TRY,
        "vcenter_name": VCENTER,
        "vm_name": MACHINE_NAME,
        "vm_instance_uuid": MACHINE,
        "site_name": SITE,
        "repository_name": "default",
    }
    job = pb.Job(**{**facts, **changed})
    job.create_time.GetCurrentTime()
    return job


def files_of(repository: Repository) -> list[Path]:
    """What is in a repository besides its marker and the copies of the catalog."""
    ours = {"sendense-repository.json", "hub-catalogs"}
    return [path for path in repository.root.iterdir() if path.name not in ours]


def qemu_nbd_of(directory: Path) -> list[int]:
    """Processes that serve a socket below `directory`."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes()
                if words.startswith(b"qemu-nbd") and os.fsencode(directory) in words:
                    found.append(int(path.name))
    return found


async def until(condition: Callable[[], Any], what: str) -> None:
    """Polls with a deadline."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S:.0f} s: {what}"
        await asyncio.sleep(0.02)


@dataclass
class Api:
    """The hub's API as a process."""

    world: World
    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel

    @property
    def jobs(self) -> JobServiceStub:
        return JobServiceStub(self.channel)

    @property
    def points(self) -> PointServiceStub:
        return PointServiceStub(self.channel)

    async def register(self) -> None:
        """The site and its vCenter."""
        await SiteServiceStub(self.channel).RegisterSite(
            site_service_pb2.RegisterSiteRequest(name=SITE, ssh_public_key=SSH_KEY)
        )
        await VcenterServiceStub(self.channel).AddVcenter(
            vcenter_pb.AddVcenterRequest(
                vcenter=vcenter_pb.Vcenter(
                    name=VCENTER, host="vc.example", certificate_sha256=bytes(32), credential_id="cred"
                )
            )
        )

    async def start_backup(self, request_id: str = "", vm: str = MACHINE_NAME) -> pb.Job:
        request = backup_service_pb2.StartBackupRequest(request_id=request_id or str(uuid.uuid4()), vm=vm)
        return (await BackupServiceStub(self.channel).StartBackup(request)).job

    async def job(self, job_id: str) -> pb.Job:
        return (await self.jobs.GetJob(job_service_pb2.GetJobRequest(job_id=job_id))).job

    async def ended(self, job_id: str) -> pb.Job:
        """The job when it has ended."""
        async with asyncio.timeout(WITHIN_S):
            async for answer in self.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id)):
                last = answer.job
        assert last.state in ENDED
        return last

    async def kill(self) -> None:
        """SIGKILL, and nothing of it runs any more."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        directory = self.world.paths.exports_dir
        await until(lambda: not qemu_nbd_of(directory), "qemu-nbd dies with the hub")

    async def stop(self) -> int:
        self.process.terminate()
        async with asyncio.timeout(WITHIN_S):
            return await self.process.wait()


def api_command(world: World, *options: str) -> list[str]:
    """As the supervisor starts it."""
    return [
        *(sys.executable, "-m", "sendense_hub.api"),
        *("--state", str(world.paths.state), "--run", str(world.paths.run)),
        *("--credentials-run", str(world.credentials.run)),
        *options,
    ]


@contextlib.asynccontextmanager
async def api_of(world: World, *options: str) -> AsyncIterator[Api]:
    """`python -m sendense_hub.api`, ready."""
    with (world.paths.state / "api.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*api_command(world, *options), stderr=log)
    try:
        await rpc.wait_healthy(world.paths.api_socket, timeout_s=WITHIN_S, what="the API")
        async with rpc.connect(world.paths.api_socket) as channel:
            yield Api(world, process, channel)
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(WITHIN_S):
            await process.wait()
