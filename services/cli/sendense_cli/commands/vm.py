# SPDX-License-Identifier: Apache-2.0
"""`sendense vm`."""

from __future__ import annotations

from typing import Annotated

import typer

from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_cli import check_view, words
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, console, table

app = typer.Typer(no_args_is_help=True, help="Virtual machines, as the vCenters show them now.")


@app.command("list")
def list_(
    vcenter: Annotated[str, typer.Option(metavar="N", help="Only of this vCenter.")] = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """List the VMs of all vCenters, or of one.

    Example: sendense vm list --vcenter prod
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
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
