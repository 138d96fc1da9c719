# SPDX-License-Identifier: Apache-2.0
"""Plays a scenario through the whole system: a running `sendense up`, and a simulated vCenter of its own.

Faster than by the command line, which other tests use: calls go straight to the services, and points are
opened as their format allows, by stock `qemu-img` on the layers.
"""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.kit import World

from sendense.credentials.v1 import credential_service_pb2 as credentials_pb
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import backup_service_pb2, job_pb2, job_service_pb2, vcenter_service_pb2
from sendense.hub.v1.backup_service_pb2_grpc import BackupServiceStub
from sendense.hub.v1.job_service_pb2_grpc import JobServiceStub
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_cli.session import as_dict
from sendense_common import rpc
from sendense_lab.client import LabClient
from sendense_lab.demo import leftovers
from sendense_lab.scenarios import read, shipped

_USER, _PASSWORD = "backup@vsphere.local", "correct horse"
_OURS = "Sendense backup"
_GONE_WITHIN_S = 30.0


@dataclass
class Played:
    """What came of a scenario."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def play(world: World, name: str, directory: Path) -> Played:
    """One scenario to its end; what was not as it must be is in `problems`."""
    scenario, played = read(shipped()[name]), Played()
    layers: list[tuple[Path, Path]] = []
    async with (
        LabClient.start(directory, username=_USER, password=_PASSWORD, options=["--scenario", name]) as lab,
        rpc.connect(world.installation.hub.api_socket) as hub,
        rpc.connect(world.installation.credentials.operator_socket) as credentials,
    ):
        await _add_vcenter(hub, credentials, name, lab)
        vms = {each.vm for each in scenario.backup}
        for vm in vms:
            await lab.command("hold_frozen", vm=vm, directory=str(directory / "frozen" / vm))
        number = 0
        while (backup := await lab.command("next_backup")) is not None:
            number += 1
            job = await _back_up(hub, name, backup)
            played.jobs.append(job)
            found = [*differences(backup["expect"], job)]
            found += [f"did not happen: {each}" for each in await lab.command("planned_events")]
            found += [each async for each in _left(lab, vms)]
            played.problems += [f"backup {number} of {backup['vm']}: {each}" for each in found]
            if job["state"] == "JOB_STATE_SUCCEEDED":
                layers += _layers(world.repository, directory / "frozen" / backup["vm"], job)
        for layer, frozen in layers:
            played.problems += await _compared(layer, frozen)
        point_ids = {each["point_id"] for each in played.jobs if each["point_id"]}
        played.problems += [
            each
            for machine in {layer.parents[1] for layer, _ in layers}
            for each in leftovers.in_repository(machine, point_ids)
        ]
    if not scenario.backup:
        played.problems.append("it has no backup")
    return played


def differences(expected: dict[str, Any], job: dict[str, Any]) -> list[str]:
    """What a job says otherwise than it must."""
    failure = job.get("failure") or {}
    copied = [disk for disk in job["disks"] if disk["state"] != "DISK_STATE_SKIPPED"]
    skipped = [disk for disk in job["disks"] if disk["state"] == "DISK_STATE_SKIPPED"]
    said = {
        "state": job["state"].removeprefix("JOB_STATE_").lower(),
        "reason": str(failure.get("reason", "")).removeprefix("REASON_"),
        "disks": {
            str(disk["key"]): {"mode": disk["mode"], "mode_reason": disk["mode_reason"]} for disk in copied
        },
        "not_protected": {str(disk["key"]): disk["mode_reason"] for disk in skipped},
        "warnings": sorted(warning["code"] for warning in job["warnings"]),
    }
    wanted = {name: expected[name] for name in said}
    wanted["warnings"] = sorted(expected["warnings"])
    if expected["quiesce"]:
        wanted["quiesce"], said["quiesce"] = expected["quiesce"], job["quiesce_result"]
    if expected["attempts"]:
        wanted["attempts"], said["attempts"] = expected["attempts"], job["attempt"]
    found = [f"{name}: {said[name]!r}, not {wanted[name]!r}" for name in said if said[name] != wanted[name]]
    words = json.dumps([failure, job["warnings"]])
    found += [f"nothing says {each!r}: {words}" for each in expected["says"] if each not in words]
    if found and failure:
        found.append(f"it says: {failure.get('message')}")
    return found


async def _add_vcenter(hub: Any, credentials: Any, name: str, lab: LabClient) -> None:
    where = credentials_pb.Endpoint(host=lab.host, port=lab.port, ca_pem=lab.ca_file.read_text())
    secret = credentials_pb.Secret(username=_USER, password=_PASSWORD, endpoint=where)
    stored = await CredentialServiceStub(credentials).StoreCredential(
        credentials_pb.StoreCredentialRequest(
            request_id=str(uuid.uuid4()), name=f"vcenter/{name}", secret=secret, agent_ids=["local"]
        )
    )
    vcenter = vcenter_service_pb2.Vcenter(
        name=name,
        host=lab.host,
        port=lab.port,
        ca_pem=lab.ca_file.read_text(),
        credential_id=stored.credential.credential_id,
    )
    await VcenterServiceStub(hub).AddVcenter(vcenter_service_pb2.AddVcenterRequest(vcenter=vcenter))


async def _back_up(hub: Any, vcenter: str, backup: dict[str, Any]) -> dict[str, Any]:
    request = backup_service_pb2.StartBackupRequest(
        request_id=str(uuid.uuid4()),
        vm=backup["vm"],
        vcenter_name=vcenter,
        mode=job_pb2.BackupMode.Value(f"BACKUP_MODE_{backup['mode'].upper()}"),
        quiesce=job_pb2.Quiesce.Value(f"QUIESCE_{backup['quiesce'].upper()}"),
    )
    job = (await BackupServiceStub(hub).StartBackup(request)).job
    if job.state != job_pb2.JOB_STATE_FAILED:
        async for answer in JobServiceStub(hub).WatchJob(job_service_pb2.WatchJobRequest(job_id=job.job_id)):
            job = answer.job
    return as_dict(job)


async def _left(lab: LabClient, vms: set[str]) -> AsyncIterator[str]:
    """Snapshots of ours, and sessions, which the agent may still be closing when the job has ended."""
    deadline = asyncio.get_running_loop().time() + _GONE_WITHIN_S
    while sessions := (await lab.counters())["sessions"]:
        if asyncio.get_running_loop().time() > deadline:
            yield f"{sessions} sessions are left"
            break
        await asyncio.sleep(0.05)
    for vm in vms:
        for snapshot in await lab.snapshots(vm):
            if snapshot["description"].startswith(_OURS):
                yield f"snapshot {snapshot['name']} of {vm} is left"


def _layers(repository: Path, frozen: Path, job: dict[str, Any]) -> list[tuple[Path, Path]]:
    """Of each disk in the job's point: its layer, and a copy of what the disk held at the snapshot."""
    (document,) = repository.glob(f"*/*/{job['point_id']}/point.json")
    disks = json.loads(document.read_bytes())["disks"]
    copied = {disk["key"] for disk in job["disks"] if disk["state"] != "DISK_STATE_SKIPPED"}
    assert {disk["key"] for disk in disks} == copied, "the point has other disks than the job"
    return [
        (
            document.parent / disk["layer_file"],
            max(frozen.glob(f"snapshot-*-{disk['key']}.raw"), key=lambda file: int(file.name.split("-")[1])),
        )
        for disk in disks
    ]


async def _compared(layer: Path, frozen: Path) -> list[str]:
    with layer.open("rb") as file:
        (size,) = struct.unpack(">Q", file.read(32)[24:])
    if size != frozen.stat().st_size:
        return [f"{layer.name} has {size} bytes, the disk had {frozen.stat().st_size}"]
    child = await asyncio.create_subprocess_exec(
        "qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(layer), str(frozen),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    words, _ = await child.communicate()
    return [f"{layer} and {frozen.name}: {words.decode()}"] if child.returncode else []
