# SPDX-License-Identifier: Apache-2.0
"""vCenters, and what was last seen in them."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from sendense.agent.v1 import agent_service_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import refused_logins, schema
from sendense_hub.catalog.schema import vcenters, virtual_machines
from sendense_hub.domain.times import now_us, to_timestamp


def add(connection: sa.Connection, vcenter: pb.Vcenter) -> pb.Vcenter:
    """Adds one; VCENTER_EXISTS."""
    taken = connection.scalar(sa.select(vcenters.c.name).where(vcenters.c.name == vcenter.name))
    if taken is not None:
        raise SendenseError(
            Reason.REASON_VCENTER_EXISTS,
            f"there is a vCenter {vcenter.name!r} already",
            remedy=f"Choose another name, or remove it first: `sendense vcenter remove {vcenter.name}`.",
            vcenter=vcenter.name,
        )
    connection.execute(
        vcenters.insert().values(
            name=vcenter.name,
            host=vcenter.host,
            port=vcenter.port,
            ca_pem=vcenter.ca_pem,
            certificate_sha256=vcenter.certificate_sha256,
            credential_id=vcenter.credential_id,
            site_name=vcenter.site_name,
            instance_uuid="",
            create_time_us=now_us(),
        )
    )
    return get(connection, vcenter.name)


def change(connection: sa.Connection, vcenter: pb.Vcenter) -> pb.Vcenter:
    """Keeps another address, and another trust if it has one, of one that is there; VCENTER_NOT_FOUND."""
    before = get(connection, vcenter.name)
    trusted = vcenter if vcenter.WhichOneof("trust") else before
    connection.execute(
        vcenters.update()
        .where(vcenters.c.name == vcenter.name)
        .values(
            host=vcenter.host,
            port=vcenter.port,
            ca_pem=trusted.ca_pem,
            certificate_sha256=trusted.certificate_sha256,
        )
    )
    return get(connection, vcenter.name)


def get(connection: sa.Connection, name: str) -> pb.Vcenter:
    """One; VCENTER_NOT_FOUND."""
    row = connection.execute(_with_refusals().where(vcenters.c.name == name)).one_or_none()
    if row is None:
        raise SendenseError(
            Reason.REASON_VCENTER_NOT_FOUND,
            f"there is no vCenter {name!r}",
            remedy="`sendense vcenter list` shows them all.",
            vcenter=name,
        )
    return _message(row)


def listed(connection: sa.Connection) -> list[pb.Vcenter]:
    """All, by name."""
    return [_message(row) for row in connection.execute(_with_refusals().order_by(vcenters.c.name))]


def remove(connection: sa.Connection, name: str) -> pb.Vcenter:
    """Forgets one and its inventory; VCENTER_NOT_FOUND."""
    vcenter = get(connection, name)
    connection.execute(vcenters.delete().where(vcenters.c.name == name))
    refused_logins.lift(connection, vcenter.credential_id)
    return vcenter


def set_identity(connection: sa.Connection, name: str, instance_uuid: str) -> None:
    """Keeps what it said that it is. It never becomes another one, nor one that another site has.

    The word is an agent's: without this, one site could have the points of another's VMs built upon.

    Raises:
        SendenseError: VCENTER_IDENTITY.
    """
    columns = vcenters.c
    row = connection.execute(
        sa.select(columns.instance_uuid, columns.site_name, columns.host, columns.port).where(
            columns.name == name
        )
    ).one_or_none()
    if row is None or row.instance_uuid == instance_uuid:
        return
    if row.instance_uuid:
        raise SendenseError(
            Reason.REASON_VCENTER_IDENTITY,
            f"another vCenter answers at {row.host}:{row.port}: vCenter {name} says that it is "
            f"{instance_uuid}, and was {row.instance_uuid}",
            remedy=f"If the address is wrong: `sendense vcenter change {name} --address HOST`. If it was "
            f"replaced by another one: `sendense vcenter remove {name}`, then `sendense vcenter add {name} "
            f"--address {row.host}:{row.port} --username USER --password-file FILE --ca-file FILE`; restore "
            "points stay, and its VMs' next backups are fulls.",
            vcenter=name,
        )
    other = connection.execute(
        sa.select(columns.name, columns.site_name).where(
            columns.instance_uuid == instance_uuid, columns.site_name != row.site_name
        )
    ).first()
    if other is not None:
        raise SendenseError(
            Reason.REASON_VCENTER_IDENTITY,
            f"vCenter {name} says that it is {instance_uuid}, as {other.name} of site {other.site_name} is",
            remedy=f"One vCenter belongs to one site: `sendense vcenter remove {name}`, or that of the other "
            "site. A cloned vCenter needs an instance UUID of its own.",
            vcenter=name,
            other=other.name,
        )
    connection.execute(vcenters.update().where(columns.name == name).values(instance_uuid=instance_uuid))


def replace_inventory(connection: sa.Connection, name: str, machines: Iterable[agent.VirtualMachine]) -> None:
    """What was seen of one vCenter, whole."""
    connection.execute(virtual_machines.delete().where(virtual_machines.c.vcenter_name == name))
    rows = [
        {
            "vcenter_name": name,
            "instance_uuid": machine.instance_uuid,
            "name": machine.name,
            "moref": machine.moref,
            "facts": machine.SerializeToString(),
        }
        for machine in machines
    ]
    if rows:
        connection.execute(virtual_machines.insert(), rows)


def find_machines(
    connection: sa.Connection, named: str, vcenter_name: str = ""
) -> list[tuple[str, agent.VirtualMachine]]:
    """(vCenter's name, VM) of all that were last seen with this name, managed object ID or instance UUID."""
    columns = virtual_machines.c
    query = sa.select(virtual_machines).where(
        sa.or_(columns.name == named, columns.moref == named, columns.instance_uuid == named)
    )
    if vcenter_name:
        query = query.where(columns.vcenter_name == vcenter_name)
    return [
        (row.vcenter_name, agent.VirtualMachine.FromString(row.facts))
        for row in connection.execute(query.order_by(columns.vcenter_name, columns.instance_uuid))
    ]


def machines(connection: sa.Connection, vcenter_name: str) -> list[agent.VirtualMachine]:
    """What was last seen of one vCenter, by name."""
    query = (
        sa.select(virtual_machines.c.facts)
        .where(virtual_machines.c.vcenter_name == vcenter_name)
        .order_by(virtual_machines.c.name, virtual_machines.c.instance_uuid)
    )
    return [agent.VirtualMachine.FromString(facts) for facts in connection.scalars(query)]


def _with_refusals() -> sa.Select[tuple[object, ...]]:
    refused = schema.refused_logins.c
    return sa.select(vcenters, refused.time_us.label("refused_us")).outerjoin(
        schema.refused_logins, refused.credential_id == vcenters.c.credential_id
    )


def _message(row: sa.Row[tuple[object, ...]]) -> pb.Vcenter:
    vcenter = pb.Vcenter(
        name=row.name,
        host=row.host,
        port=row.port,
        credential_id=row.credential_id,
        site_name=row.site_name,
        instance_uuid=row.instance_uuid,
        create_time=to_timestamp(row.create_time_us),
        login_refused_time=to_timestamp(row.refused_us),
    )
    if row.ca_pem:
        vcenter.ca_pem = row.ca_pem
    else:
        vcenter.certificate_sha256 = row.certificate_sha256
    return vcenter
