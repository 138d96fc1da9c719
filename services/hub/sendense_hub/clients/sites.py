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
from sendense.common.v1.act_pb2 import Act
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense.hub.v1.vcenter_service_pb2 import Vcenter
from sendense_common import protocol, rpc
from sendense_common.errors import SendenseError
from sendense_common.undisturbed import undisturbed
from sendense_hub.clients.leases import Leases

_SUBJECT_CHARACTERS = 128
_LOOK_S = 3.0
_AGREE_S = 30.0
_LOGIN_S = 60.0
_INVENTORY_S = 300.0
_CLEAN_UP_S = 900.0
_TIDY_S = 60.0


class Sites:
    """Reaches agents by the sockets that gateways publish."""

    def __init__(self, agents_dir: Path, leases: Leases) -> None:
        """Args: agents_dir: holds `<site>.sock` while a site is connected."""
        self._agents_dir = agents_dir
        self._leases = leases
        self.revoked: set[str] = set()
        """Sites whose key was revoked: nothing is asked of them, whatever is still connected."""

    def socket(self, site: str) -> Path:
        """Where its agent answers.

        Raises:
            SendenseError: SITE_OFFLINE when it is not connected; SITE_REVOKED.
        """
        if site in self.revoked:
            raise site_revoked(site)
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
            async with rpc.connect(self.socket(site)) as channel:
                return await AgentServiceStub(channel).GetAgent(pb.GetAgentRequest(), timeout=_LOOK_S)
        except (SendenseError, grpc.aio.AioRpcError):
            return None

    async def agree(self, site: str, stub: AgentServiceStub) -> int:
        """The protocol to speak with the agent at the other end of `stub`.

        Raises:
            SendenseError: VERSION_NOT_SUPPORTED.
            grpc.aio.AioRpcError: it does not answer.
        """
        agent = await stub.GetAgent(pb.GetAgentRequest(), timeout=_AGREE_S)
        return protocol_of(agent, site)

    @contextlib.asynccontextmanager
    async def access(
        self, vcenter: Vcenter, operation: operation_pb2.Operation.ValueType, subject_id: str
    ) -> AsyncIterator[VcenterAccess]:
        """How the site's agent reaches a vCenter, with a fresh lease for one operation, which the block is.

        When the block fails, a lease that was not used is given back.
        """
        lease_id = await self._leases.issue(vcenter.credential_id, vcenter.site_name, operation, subject_id)
        access = VcenterAccess(
            name=vcenter.name,
            host=vcenter.host,
            port=vcenter.port,
            lease_id=lease_id,
            credential_id=vcenter.credential_id,
        )
        if vcenter.WhichOneof("trust") == "ca_pem":
            access.ca_pem = vcenter.ca_pem
        else:
            access.certificate_sha256 = vcenter.certificate_sha256
        try:
            yield access
        except BaseException:
            await undisturbed(self._leases.give_back(lease_id))
            raise

    async def test_vcenter(self, vcenter: Vcenter) -> pb.TestVcenterResponse:
        """Has the agent log in once."""
        doing = f"testing vCenter {vcenter.name}"
        async with self._using(vcenter, operation_pb2.OPERATION_TEST, doing) as (stub, access):
            return await stub.TestVcenter(pb.TestVcenterRequest(vcenter=access), timeout=_LOGIN_S)

    async def check_machine(
        self, vcenter: Vcenter, hub_id: str, instance_uuid: str, name: str
    ) -> list[pb.MachineFinding]:
        """What would keep a backup of one VM from working."""
        doing = f"checking VM {name}"
        async with self._using(vcenter, operation_pb2.OPERATION_INVENTORY, doing) as (stub, access):
            request = pb.CheckVirtualMachineRequest(
                vcenter=access, vm_instance_uuid=instance_uuid, vm_name=name, hub_id=hub_id
            )
            return list((await stub.CheckVirtualMachine(request, timeout=_INVENTORY_S)).findings)

    async def virtual_machines(self, vcenter: Vcenter) -> tuple[str, list[pb.VirtualMachine]]:
        """The vCenter's UUID and all its VMs, as they are now."""
        doing = f"listing VMs of {vcenter.name}"
        identity = ""
        machines: list[pb.VirtualMachine] = []
        async with self._using(vcenter, operation_pb2.OPERATION_INVENTORY, doing) as (stub, access):
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
        doing = f"cleaning up at {vcenter.name}"
        async with self._using(vcenter, operation_pb2.OPERATION_CLEAN_UP, doing) as (stub, access):
            request = pb.CleanUpSnapshotsRequest(vcenter=access, hub_id=hub_id)
            for job_id, machine in snapshots:
                request.snapshots.add(job_id=job_id, vm_instance_uuid=machine)
            answer = await stub.CleanUpSnapshots(request, timeout=_CLEAN_UP_S)
        return set(answer.cleaned_job_ids)

    async def find_snapshots(self, vcenter: Vcenter, hub_id: str) -> list[pb.FoundSnapshot]:
        """All snapshots at a vCenter that jobs of this hub made."""
        doing = f"looking for snapshots at {vcenter.name}"
        async with self._using(vcenter, operation_pb2.OPERATION_INVENTORY, doing) as (stub, access):
            request = pb.FindSnapshotsRequest(vcenter=access, hub_id=hub_id)
            return list((await stub.FindSnapshots(request, timeout=_INVENTORY_S)).snapshots)

    async def reconcile(self, site: str) -> list[Act]:
        """Has a site's agent tidy its own host."""
        async with self._calling(site, "tidying up") as stub:
            return list((await stub.Reconcile(pb.ReconcileRequest(), timeout=_TIDY_S)).acts)

    async def reset_tracking(
        self, vcenter: Vcenter, hub_id: str, instance_uuid: str, name: str, reset_id: str
    ) -> None:
        """Has changed block tracking of a VM turned off and on.

        Args:
            vcenter: where.
            hub_id: ours.
            instance_uuid: of the VM.
            name: of the VM.
            reset_id: a snapshot that is left is known by it, as by a job's.
        """
        doing = f"resetting change tracking of VM {name}"
        async with self._using(vcenter, operation_pb2.OPERATION_CLEAN_UP, doing) as (stub, access):
            request = pb.ResetChangeTrackingRequest(
                vcenter=access,
                vm_instance_uuid=instance_uuid,
                vm_name=name,
                hub_id=hub_id,
                reset_id=reset_id,
            )
            await stub.ResetChangeTracking(request, timeout=_CLEAN_UP_S)

    @contextlib.asynccontextmanager
    async def _using(
        self, vcenter: Vcenter, operation: operation_pb2.Operation.ValueType, doing: str
    ) -> AsyncIterator[tuple[AgentServiceStub, VcenterAccess]]:
        """The site's agent, and a lease for one operation of it."""
        self.socket(vcenter.site_name)
        async with (
            self.access(vcenter, operation, doing[:_SUBJECT_CHARACTERS]) as access,
            self._calling(vcenter.site_name, doing) as stub,
        ):
            yield stub, access

    @contextlib.asynccontextmanager
    async def _calling(self, site: str, doing: str) -> AsyncIterator[AgentServiceStub]:
        async with rpc.connect(self.socket(site)) as channel:
            try:
                stub = AgentServiceStub(channel)
                await self.agree(site, stub)
                yield stub
            except grpc.aio.AioRpcError as error:
                raise SendenseError.from_rpc(error, doing=f"{doing} through site {site!r}") from error


def site_revoked(site: str) -> SendenseError:
    """SITE_REVOKED."""
    return SendenseError(
        Reason.REASON_SITE_REVOKED,
        f"the key of site {site!r} was revoked: nothing is done through its agent",
        remedy=f"Let the site in with new keys: `sendense agent invite {site}`.",
        site=site,
    )


def protocol_of(agent: pb.GetAgentResponse, site: str) -> int:
    """The protocol to speak with an agent; VERSION_NOT_SUPPORTED."""
    theirs = protocol.Protocols.said(agent.oldest_protocol, agent.newest_protocol)
    return protocol.agreed(theirs, site=site, their_version=agent.version)
