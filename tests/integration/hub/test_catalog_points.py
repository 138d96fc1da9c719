# SPDX-License-Identifier: Apache-2.0
"""Points, sites, vCenters and what is left to clean up, on a real SQLite file."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.integration.hub.kit import SSH_KEY, new_job
from tests.integration.hub.test_catalog import keep

from sendense.agent.v1.agent_service_pb2 import VirtualMachine
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2 as point_pb
from sendense.hub.v1 import site_service_pb2 as site_pb
from sendense.hub.v1 import vcenter_service_pb2 as vcenter_pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import (
    Catalog,
    cleanups,
    jobs,
    open_catalog,
    points,
    repositories,
    sites,
    spans,
    vcenters,
)
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.catalog.spans import StoredSpan
from sendense_hub.domain.times import to_timestamp

pytestmark = pytest.mark.integration

VM = {"vcenter_uuid": "vc-uuid", "vm_instance_uuid": "vm-uuid", "repository_name": "default"}


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with open_catalog(f"sqlite:///{tmp_path / 'c.sqlite'}") as opened:
        yield opened


def point(moment_us: int, *disks: point_pb.PointDisk, **changed: str) -> point_pb.RestorePoint:
    facts: dict[str, Any] = {
        **VM,
        "point_id": str(uuid.uuid4()),
        "job_id": str(uuid.uuid4()),
        "vcenter_name": "vc",
        "vm_name": "web",
    }
    return point_pb.RestorePoint(
        **{**facts, **changed}, complete_time=to_timestamp(moment_us), disks=disks or (disk(2000),)
    )


def disk(key: int, parent: str = "") -> point_pb.PointDisk:
    return point_pb.PointDisk(key=key, label=f"Hard disk {key}", capacity_bytes=512, parent_point_id=parent)


async def complete(catalog: Catalog, made: point_pb.RestorePoint) -> point_pb.RestorePoint:
    await catalog.run(lambda connection: points.complete(connection, made))
    return made


async def test_ff19_a_vm_with_disk_in_its_name_is_listed(catalog: Catalog):
    name = "web-disk-01"
    await keep(catalog, new_job(vm_name=name, state=pb.JOB_STATE_FAILED))
    await keep(catalog, new_job(vm_name="web", state=pb.JOB_STATE_SUCCEEDED))
    found = await catalog.run(
        lambda connection: jobs.listed(connection, vm=name, states=[pb.JOB_STATE_FAILED], limit=9)
    )
    assert [job.vm_name for job in found] == [name]
    await complete(catalog, point(1, vm_name=name))
    listed = await catalog.run(lambda connection: points.listed(connection, vm=name, limit=9))
    assert [each.vm_name for each in listed] == [name]


async def newest(catalog: Catalog, **changed: str) -> dict[int, str]:
    key = {**VM, "vcenter_name": "vc", **changed}
    found = await catalog.run(lambda connection: points.newest_disks(connection, **key))
    return {number: each.point_id for number, (each, _) in found.items()}


async def test_rule_20_the_previous_point_is_found_by_vm_disk_and_repository(catalog: Catalog):
    first = await complete(catalog, point(1, disk(2000), disk(2001)))
    second = await complete(catalog, point(2, disk(2000, first.point_id)))
    assert await newest(catalog) == {2000: second.point_id, 2001: first.point_id}
    assert await newest(catalog, repository_name="elsewhere") == {}, "the first backup there is a full"
    elsewhere = await complete(catalog, point(3, repository_name="elsewhere"))
    assert await newest(catalog, repository_name="elsewhere") == {2000: elsewhere.point_id}
    assert await newest(catalog) == {2000: second.point_id, 2001: first.point_id}
    full = await complete(catalog, point(4, disk(2000)))
    assert (await newest(catalog))[2000] == full.point_id


async def test_rule_21_vms_of_one_name_at_two_vcenters_are_two(catalog: Catalog):
    mine = await complete(catalog, point(1))
    other = await complete(catalog, point(2, vcenter_uuid="other"))
    assert await newest(catalog) == {2000: mine.point_id}
    assert await newest(catalog, vcenter_uuid="other") == {2000: other.point_id}
    machines = await catalog.run(points.newest_by_machine)
    assert machines == {("vc-uuid", "vm-uuid"): 1, ("other", "vm-uuid"): 2}


async def test_rule_04_a_point_that_is_written_or_deleted_is_nobodys_parent(catalog: Catalog):
    good = await complete(catalog, point(1))
    writing = point(2)
    await catalog.run(lambda connection: points.begin(connection, writing))
    going = await complete(catalog, point(3))
    await catalog.run(lambda connection: points.set_deleting(connection, going.point_id))
    assert await newest(catalog) == {2000: good.point_id}
    listed = await catalog.run(lambda connection: points.listed(connection, limit=9))
    assert [each.point_id for each in listed] == [good.point_id]
    stored = await catalog.run(lambda connection: points.get(connection, writing.point_id))
    assert [each.change_id for each in stored.disks] == [""]


async def test_a_point_knows_what_is_built_on_it(catalog: Catalog):
    first = await complete(catalog, point(1, disk(2000), disk(2001)))
    second = await complete(catalog, point(2, disk(2000, first.point_id), disk(2001, first.point_id)))
    stored = await catalog.run(lambda connection: points.get(connection, first.point_id))
    assert (stored.kind, list(stored.dependant_point_ids)) == ("full", [second.point_id])
    await complete(catalog, second)
    await catalog.run(lambda connection: points.forget(connection, second.point_id))
    stored = await catalog.run(lambda connection: points.get(connection, first.point_id))
    assert list(stored.dependant_point_ids) == []
    rows = await catalog.run(
        lambda connection: connection.scalar(
            sa.text("select count(*) from point_disks where point_id = :id").bindparams(id=second.point_id)
        )
    )
    assert rows == 0


# --- the rest ---


async def test_a_moved_repository_is_fine_and_another_under_its_name_is_not(catalog: Catalog):
    await catalog.run(lambda connection: repositories.bind(connection, "default", "/a", "id-1"))
    await catalog.run(lambda connection: repositories.bind(connection, "default", "/b", "id-1"))
    with pytest.raises(SendenseError) as other:
        await catalog.run(lambda connection: repositories.bind(connection, "default", "/b", "id-2"))
    assert other.value.reason == Reason.REASON_REPOSITORY_NOT_FOUND


async def test_a_key_belongs_to_one_site_for_good(catalog: Catalog):
    def register(name: str, key: str) -> Callable[[sa.Connection], site_pb.Site]:
        return lambda connection: sites.register(connection, name, SSH_KEY, key)

    once = await catalog.run(register("a", "SHA256:1"))
    assert await catalog.run(register("a", "SHA256:1")) == once
    for name, key in (("a", "SHA256:2"), ("b", "SHA256:1")):
        with pytest.raises(SendenseError) as taken:
            await catalog.run(register(name, key))
        assert taken.value.reason == Reason.REASON_SITE_EXISTS


async def test_a_removed_vcenter_takes_its_inventory_with_it(catalog: Catalog):
    def fill(connection: sa.Connection) -> None:
        sites.register(connection, "a", SSH_KEY, "SHA256:1")
        vcenters.add(
            connection,
            vcenter_pb.Vcenter(name="vc", host="h", port=1, ca_pem="pem", credential_id="c", site_name="a"),
        )
        seen = [VirtualMachine(instance_uuid=f"u{n}", moref=f"vm-{n}", name="web") for n in range(2)]
        vcenters.replace_inventory(connection, "vc", seen)

    await catalog.run(fill)
    for named, count in (("web", 2), ("vm-1", 1), ("u0", 1), ("we", 0)):
        found = await catalog.run(lambda connection, named=named: vcenters.find_machines(connection, named))  # type: ignore[misc]
        assert len(found) == count
    await catalog.run(lambda connection: vcenters.remove(connection, "vc"))
    assert await catalog.run(lambda connection: vcenters.find_machines(connection, "web")) == []
    with pytest.raises(SendenseError) as missing:
        await catalog.run(lambda connection: vcenters.get(connection, "vc"))
    assert missing.value.reason == Reason.REASON_VCENTER_NOT_FOUND


async def test_a_clean_up_is_remembered_once_and_until_it_is_done(catalog: Catalog):
    pending = PendingCleanup("job", "vc", "vm", "web")
    for _ in range(2):
        await catalog.run(lambda connection: cleanups.add(connection, pending))
    assert await catalog.run(cleanups.listed) == [pending]
    await catalog.run(lambda connection: cleanups.done(connection, ["other"]))
    assert await catalog.run(cleanups.listed) == [pending]
    await catalog.run(lambda connection: cleanups.done(connection, ["job"]))
    assert await catalog.run(cleanups.listed) == []


async def test_a_span_that_comes_again_replaces_itself(catalog: Catalog):
    def span(name: str) -> StoredSpan:
        return StoredSpan("t", "s", "", name, "hub", 1, 2, "", {"vm": "web"})

    for name in ("old", "new"):
        await catalog.run(lambda connection, name=name: spans.store(connection, [span(name)], ""))  # type: ignore[misc]
    (found,) = await catalog.run(lambda connection: spans.of_trace(connection, "t"))
    assert (found.name, dict(found.attributes)) == ("new", {"vm": "web"})


async def test_rule_21_a_site_cannot_claim_another_sites_vcenter(catalog: Catalog):
    """What an agent says of its vCenter's identity is bound once, and to one site."""

    def add(name: str, site: str) -> Callable[[sa.Connection], Any]:
        vcenter = vcenter_pb.Vcenter(
            name=name, host="h", port=443, certificate_sha256=bytes(32), credential_id=name, site_name=site
        )
        return lambda connection: vcenters.add(connection, vcenter)

    def identify(name: str, instance_uuid: str) -> Callable[[sa.Connection], None]:
        return lambda connection: vcenters.set_identity(connection, name, instance_uuid)

    for number, site in enumerate(("a", "b")):
        key = f"{SSH_KEY}{number}"
        await catalog.run(lambda c, site=site, key=key: sites.register(c, site, key, f"SHA256:{site}"))  # type: ignore[misc]
    await catalog.run(add("vc", "a"))
    await catalog.run(add("evil", "b"))
    await catalog.run(identify("vc", "vc-uuid"))
    await catalog.run(identify("vc", "vc-uuid"))
    mine = await complete(catalog, point(1))
    with pytest.raises(SendenseError, match="as vc of site a is") as claimed:
        await catalog.run(identify("evil", "vc-uuid"))
    assert claimed.value.reason == Reason.REASON_VCENTER_IDENTITY
    assert "`sendense vcenter remove evil`" in claimed.value.remedy
    with pytest.raises(SendenseError, match=r"another vCenter answers at h:443: .* and was vc-uuid") as other:
        await catalog.run(identify("vc", "another"))
    # Either the address is wrong, or it was replaced.
    assert "`sendense vcenter change vc --address HOST`" in other.value.remedy
    assert "`sendense vcenter remove vc`" in other.value.remedy
    assert "`sendense vcenter add vc --address h:443 --username USER" in other.value.remedy
    # Not even once the vCenter is no longer there, while its points are.
    await catalog.run(lambda connection: vcenters.remove(connection, "vc"))
    await catalog.run(identify("evil", "vc-uuid"))
    assert await newest(catalog, vcenter_name="evil") == {}
    assert await newest(catalog) == {2000: mine.point_id}


async def test_ff18_a_point_that_is_not_known_to_be_complete_keeps_what_it_is_built_on(catalog: Catalog):
    parent = await complete(catalog, point(1))
    child = point(2, disk(2000, parent.point_id))
    await catalog.run(lambda connection: points.begin(connection, child))
    found = await catalog.run(lambda connection: points.get(connection, parent.point_id))
    assert list(found.dependant_point_ids) == [child.point_id]
    await complete(catalog, child)
    assert await newest(catalog) == {2000: child.point_id}
