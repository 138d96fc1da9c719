# SPDX-License-Identifier: Apache-2.0
"""`sendense vm`."""

from __future__ import annotations

from typing import Annotated

import typer

from sendense.hub.v1 import trust_service_pb2 as trust_pb
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.trust_service_pb2_grpc import TrustServiceStub
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_cli import check_view, trust_view, words
from sendense_cli.exits import Exit, exit_code, show_error
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, console, table
from sendense_common.errors import SendenseError, invalid

app = typer.Typer(no_args_is_help=True, help="Virtual machines, as the vCenters show them now.")


@app.command("list")
def list_(
    vcenter: Annotated[str, typer.Option(metavar="N", help="Only of this vCenter.")] = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """List the VMs of all vCenters, or of one. One that cannot be asked is named, the others are listed.

    Example: sendense vm list --vcenter prod
    """
    session = Session(state, as_json=as_json)

    async def work() -> int:
        async with session.hub() as hub:
            answer = await VcenterServiceStub(hub).ListVirtualMachines(
                pb.ListVirtualMachinesRequest(vcenter_name=vcenter)
            )
        rows = []
        for each in answer.virtual_machines:
            sizes = ", ".join(words.size(disk.capacity_bytes) for disk in each.disks)
            rows.append([
                each.name, each.vcenter_name, each.moref, each.power_state.removeprefix("powered").lower(),
                "on" if each.changed_block_tracking else "off", sizes, words.moment(each.last_point_time),
            ])  # fmt: skip
        columns = ["NAME", "VCENTER", "ID", "POWER", "CBT", "DISKS", "LAST POINT"]
        session.answer(answer, table(columns, rows))
        errors = [SendenseError.from_failure(each.failure) for each in answer.failures]
        if not as_json:  # there they are part of the answer
            for error in errors:
                show_error(error, as_json=False)
        return exit_code(errors[0]) if errors else Exit.OK

    session.run(work())


@app.command()
def check(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Its name, managed object ID or instance UUID.")],
    vcenter: Annotated[str, typer.Option(metavar="N", help="Only at this vCenter.")] = "",
    repository: Annotated[str, typer.Option(metavar="N", help="Whose free space is looked at.")] = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Look at a VM as a backup would, without touching it. Exit code 1 if a backup would fail.

    Example: sendense vm check web01
    """
    session = Session(state, as_json=as_json)

    async def work() -> int:
        request = pb.CheckVirtualMachineRequest(vm=vm, vcenter_name=vcenter, repository_name=repository)
        async with session.hub() as hub:
            answer = await VcenterServiceStub(hub).CheckVirtualMachine(request)
        if as_json:
            session.answer(answer, None)
        else:
            console.print(check_view.lines(answer.checks))
        return check_view.exit_for(answer.checks)

    session.run(work())


@app.command()
def trust(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Its name, managed object ID or instance UUID.")],
    accept: Annotated[
        bool, typer.Option("--accept", help="Trust it again, after a backup that has read everything.")
    ] = False,
    reset: Annotated[
        bool,
        typer.Option(
            "--reset",
            help="Have vSphere forget what it tracked: off, a snapshot that is removed at once, and on. "
            "The next backup reads everything.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="For --reset: it is meant.")] = False,
    vcenter: Annotated[str, typer.Option(metavar="N", help="Only at this vCenter.")] = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Show whether changed block tracking of a VM is trusted, and what audits have found.

    Example: sendense vm trust web01
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        if accept and reset:
            raise invalid("--accept", "does not go together with --reset")
        if reset and not yes:
            raise invalid(
                "--reset",
                "changes the VM: tracking is turned off and on, with a snapshot in between",
                remedy="Say --reset --yes if that is meant.",
            )
        if yes and not reset:
            raise invalid("--yes", "is for --reset")
        async with session.hub() as hub:
            service = TrustServiceStub(hub)
            if accept:
                accepting = trust_pb.AcceptTrackingRequest(vm=vm, vcenter_name=vcenter)
                found = (await service.AcceptTracking(accepting)).trust
            elif reset:
                resetting = trust_pb.ResetTrackingRequest(vm=vm, vcenter_name=vcenter)
                found = (await service.ResetTracking(resetting)).trust
            else:
                asking = trust_pb.GetTrustRequest(vm=vm, vcenter_name=vcenter)
                found = (await service.GetTrust(asking)).trust
        if as_json:
            session.answer(found, None)
        else:
            console.print(trust_view.summary(found))

    session.run(work())
