# SPDX-License-Identifier: Apache-2.0
"""`sendense vm`."""

from __future__ import annotations

from typing import Annotated

import typer

from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_cli import words
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, table

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
