# SPDX-License-Identifier: Apache-2.0
"""The agents of the sites, for calls that end soon."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from sendense.agent.v1 import agent_service_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense.hub.v1.vcenter_service_pb2 import Vcenter
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_hub.clients.leases import Leases

_LOOK_S = 3.0
_LOGIN_S = 60.0
_INVENTORY_S = 300.0
_CLEAN_UP_S = 900.0


class Sites:
    """Reaches agents by the sockets that gateways publish."""

    def __init__(self, agents_dir: Path, leases: Leases) -> None:
        """Args: agents_dir: holds `<site>.sock` while a site is connected."""
        self._agents_dir = agents_dir
        self._leases = leases

    def socket(self, site: str) -> Path:
        """Where its agent answers.

        Raises:
            SendenseError: SITE_OFFLINE when it is not connected.
        """
        path = self._agents_dir / f"{site}.sock"
        if not path.exists():
            raise SendenseError(
                Reason.REASON_SITE_OFFLINE,
                f"the agent of site {site!r} is not connected",
                remedy="Start it, and look at its log if it runs: it dials the hub by itself.",
                retryable=True,
                site=site,
            )
        return path

    async def look(self, site: str) -> pb.GetAgentResponse | None:
        """What the agent says about itself; None when it does not answer."""
        try:
            async with self._calling(site, "asking who it is") as stub:
                return await stub.GetAgent(pb.GetAgentRequest(), timeout=_LOOK_S)
        except SendenseError:
            return None

    async def access(
        self, vcenter: Vcenter, operation: operation_pb2.Operation.ValueType, subject_id: str
    ) -> VcenterAccess:
        """How the site's agent reaches a vCenter, with a fresh lease for one operation."""
        lease_id = await self._leases.issue(vcenter.credential_id, vcenter.site_name, operation, subject_id)
        access = VcenterAccess(name=vcenter.name, host=vcenter.host, port=vcenter.port, lease_id=lease_id)
        if vcenter.WhichOneof("trust") == "ca_pem":
            access.ca_pem = vcenter.ca_pem
        else:
            access.certificate_sha256 = vcenter.certificate_sha256
        return access

    async def test_vcenter(self, vcenter: Vcenter) -> pb.TestVcenterResponse:
        """Has the agent log in once."""
        self.socket(vcenter.site_name)
        access = await self.access(vcenter, operation_pb2.OPERATION_TEST, f"test of {vcenter.name}")
        async with self._calling(vcenter.site_name, f"testing vCenter {vcenter.name}") as stub:
            return await stub.TestVcenter(pb.TestVcenterRequest(vcenter=access), timeout=_LOGIN_S)

    async def check_machine(
        self, vcenter: Vcenter, hub_id: str, instance_uuid: str, name: str
    ) -> list[pb.MachineFinding]:
        """What would keep a backup of one VM from working."""
        self.socket(vcenter.site_name)
        access = await self.access(vcenter, operation_pb2.OPERATION_INVENTORY, f"check of {name}"[:128])
        request = pb.CheckVirtualMachineRequest(
            vcenter=access, vm_instance_uuid=instance_uuid, vm_name=name, hub_id=hub_id
        )
        async with self._calling(vcenter.site_name, f"checking VM {name}") as stub:
            return list((await stub.CheckVirtualMachine(request, timeout=_INVENTORY_S)).findings)

    async def virtual_machines(self, vcenter: Vcenter) -> tuple[str, list[pb.VirtualMachine]]:
        """The vCenter's UUID and all its VMs, as they are now."""
        self.socket(vcenter.site_name)
        access = await self.access(vcenter, operation_pb2.OPERATION_INVENTORY, f"inventory of {vcenter.name}")
        identity = ""
        machines: list[pb.VirtualMachine] = []
        async with self._calling(vcenter.site_name, f"listing VMs of {vcenter.name}") as stub:
            request = pb.ListVirtualMachinesRequest(vcenter=access)
            async for page in stub.ListVirtualMachines(request, timeout=_INVENTORY_S):
                identity = page.vcenter_uuid
                machines.extend(page.virtual_machines)
        return identity, machines

    async def clean_up(self, vcenter: Vcenter, hub_id: str, snapshots: list[tuple[str, str]]) -> set[str]:
        """Removes snapshots of ended jobs.

        Args:
            vcenter: where.
            hub_id: ours.
            snapshots: (job's ID, VM's instance UUID).

        Returns:
            The jobs of which nothing is left.
        """
        self.socket(vcenter.site_name)
        access = await self.access(vcenter, operation_pb2.OPERATION_CLEAN_UP, f"clean-up at {vcenter.name}")
        request = pb.CleanUpSnapshotsRequest(vcenter=access, hub_id=hub_id)
        for job_id, machine in snapshots:
            request.snapshots.add(job_id=job_id, vm_instance_uuid=machine)
        async with self._calling(vcenter.site_name, f"cleaning up at {vcenter.name}") as stub:
            answer = await stub.CleanUpSnapshots(request, timeout=_CLEAN_UP_S)
        return set(answer.cleaned_job_ids)

    @contextlib.asynccontextmanager
    async def _calling(self, site: str, doing: str) -> AsyncIterator[AgentServiceStub]:
        async with rpc.connect(self.socket(site)) as channel:
            try:
                yield AgentServiceStub(channel)
            except grpc.aio.AioRpcError as error:
                raise SendenseError.from_rpc(error, doing=f"{doing} through site {site!r}") from error
