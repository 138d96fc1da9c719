# SPDX-License-Identifier: Apache-2.0
"""What can be brought about from outside, and what must be true then.

CheckError: Sendense did wrong. CannotProvokeError: vSphere did not do what the check is for.
Where it is not known what vSphere does, what was seen goes into the evidence and both ways pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab.accept import site as vsphere
from sendense_lab.accept.stand import CannotProvokeError, CheckError, Stand, copied

_MIB = 1 << 20
_NEW_DISK_BYTES = 16 * _MIB
_MOMENT_WITHIN_S = 120.0
_TOO_LATE = {"JOB_PHASE_COMMIT", "JOB_PHASE_REMOVE_SNAPSHOT", "JOB_PHASE_DONE"}
_LOST_TRACKING = {"change_id_rejected", "change_id_missing", "cbt_just_enabled"}


async def twice(stand: Stand) -> None:
    """A full and an incremental; the last point is, byte for byte, what the VM's files hold."""
    await stand.power(on=True)
    await stand.back_up("--mode", "full")
    await stand.power(on=False)  # from here on the VM's files change no more, so they can be compared
    job = await stand.back_up()
    fulls = [disk for disk in copied(job) if disk["mode"] != "incremental"]
    if fulls:
        raise CheckError(f"disk {fulls[0]['key']} was not incremental: {fulls[0]['mode_reason']}")
    await stand.compare(job)


async def powered_off(stand: Stand) -> None:
    """A VM that is off, with tracking switched on only now; then the next backup while it runs."""
    await stand.power(on=False)
    await stand.see(lambda: vsphere.track(stand.machine, on=False))
    job = await stand.back_up("--mode", "full")
    without = "no_change_id" in {each["code"] for each in job["warnings"]}
    stand.evidence.append("the VM that is off got " + ("no change ID" if without else "a change ID"))
    await stand.compare(job)
    await stand.power(on=True)
    later = await stand.back_up()
    if without and any(disk["mode"] == "incremental" for disk in copied(later)):
        raise CheckError("an incremental was made without a change ID")


async def tracking_reset(stand: Stand) -> None:
    """Change tracking is switched off and on: what was stored before must not be trusted."""
    await stand.power(on=True)
    await stand.back_up("--mode", "full")

    def reset() -> None:
        for on in (False, True):
            vsphere.track(stand.machine, on=on)
            stun = vsphere.wait(stand.machine.CreateSnapshot_Task("accept", "stuns the VM", False, False))
            vsphere.wait(stun.RemoveSnapshot_Task(False, True))

    await stand.see(reset)
    job = await stand.back_up()
    for disk in copied(job):
        if disk["mode"] == "incremental" or disk["mode_reason"] not in _LOST_TRACKING:
            raise CheckError(
                f"disk {disk['key']}: {disk['mode']} {disk['mode_reason']}, and its tracking was reset"
            )


async def earlier_snapshot(stand: Stand) -> None:
    """Somebody else's snapshot is there: refused or backed up, but it stays."""
    await stand.power(on=True)

    def take() -> Any:
        return vsphere.wait(stand.machine.CreateSnapshot_Task("accept", "somebody else's", False, False))

    theirs = await stand.see(take)
    try:
        job = await stand.end(await stand.start())
        if job["state"] != "JOB_STATE_SUCCEEDED" and "NEEDS_VDDK" not in job["failure"]["reason"]:
            raise CheckError(f"it failed for another reason: {job['failure']['message']}")
        left = await stand.see(lambda: [each.snapshot for each in vsphere.snapshots(stand.machine)])
        if theirs not in left:
            raise CheckError("the other's snapshot is gone")
    finally:
        await stand.see(lambda: vsphere.wait(theirs.RemoveSnapshot_Task(False, True)))


async def snapshot_deleted(stand: Stand) -> None:
    """Sendense's snapshot is deleted while it is read: what was read must not count."""
    await stand.power(on=True)
    job_id = await stand.start("--mode", "full")
    deadline = asyncio.get_running_loop().time() + _MOMENT_WITHIN_S
    while not (found := await stand.see(lambda: vsphere.ours(stand.machine))):
        if asyncio.get_running_loop().time() > deadline or (await stand.job(job_id))["phase"] in _TOO_LATE:
            await stand.end(job_id)
            raise CannotProvokeError("the backup was over before its snapshot could be deleted")
    try:
        await stand.see(lambda: vsphere.wait(found[0].snapshot.RemoveSnapshot_Task(False, True)))
    except vmodl.MethodFault as error:
        await stand.end(job_id)
        raise CannotProvokeError(f"the snapshot could not be deleted: {vsphere.words(error)}") from error
    moment = await stand.job(job_id)
    job = await stand.end(job_id)
    if job["state"] == "JOB_STATE_SUCCEEDED":
        if moment["phase"] in _TOO_LATE:
            raise CannotProvokeError("the backup was over before its snapshot was deleted; use a larger VM")
        if job["attempt"] < 2 and not job["warnings"]:
            raise CheckError(
                "the snapshot was deleted while it was read, and the backup succeeded all the same"
            )


async def disk_grown(stand: Stand) -> None:
    """A disk grows by 1 MiB: for that disk, and no other, what was stored is not built upon."""
    await stand.power(on=True)
    job = await stand.back_up()
    key = copied(job)[-1]["key"]

    def grow() -> None:
        (disk,) = [each for each in vsphere.disks(stand.machine) if each.key == key]
        disk.capacityInBytes += _MIB
        disk.capacityInKB = disk.capacityInBytes // 1024
        vsphere.change_disk(stand.machine, "edit", disk)

    await stand.see(grow)
    for disk in copied(await stand.back_up()):
        if (disk["mode_reason"] == "capacity_changed") != (disk["key"] == key):
            raise CheckError(f"disk {key} grew; disk {disk['key']}: {disk['mode']} {disk['mode_reason']}")


async def disk_added(stand: Stand) -> None:
    """A disk is added, then taken away: a full of that disk, then a backup without it."""
    await stand.power(on=True)
    await stand.back_up()

    def add() -> int:
        before = vsphere.disks(stand.machine)
        used = {disk.unitNumber for disk in before if disk.controllerKey == before[0].controllerKey} | {7}
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            diskMode="persistent", thinProvisioned=True, fileName=""
        )
        made = vim.vm.device.VirtualDisk(
            key=-1,
            controllerKey=before[0].controllerKey,
            unitNumber=min(set(range(15)) - used),
            capacityInBytes=_NEW_DISK_BYTES,
            capacityInKB=_NEW_DISK_BYTES // 1024,
            backing=backing,
        )
        vsphere.change_disk(stand.machine, "add", made, "create")
        (key,) = {disk.key for disk in vsphere.disks(stand.machine)} - {disk.key for disk in before}
        return int(key)

    key = await stand.see(add)
    try:
        found = [disk for disk in copied(await stand.back_up()) if disk["key"] == key]
        if [disk["mode"] for disk in found] != ["full"]:
            raise CheckError(f"the new disk {key}: {found}")
    finally:

        def remove() -> None:
            (disk,) = [each for each in vsphere.disks(stand.machine) if each.key == key]
            vsphere.change_disk(stand.machine, "remove", disk, "destroy")

        await stand.see(remove)
    if key in {disk["key"] for disk in (await stand.back_up())["disks"]}:
        raise CheckError(f"disk {key} was taken away, and is in the backup")


async def moved(stand: Stand) -> None:
    """A disk moves to another datastore and back; it stays the same disk."""
    if not stand.move_to:
        raise CannotProvokeError("no other datastore was given with --move-to")
    await stand.power(on=True)
    job = await stand.back_up()
    key = copied(job)[-1]["key"]
    by_key = {disk.key: disk for disk in await stand.see(lambda: vsphere.disks(stand.machine))}
    home = by_key[key].backing.datastore
    there = await stand.see(lambda: stand.site.datastore(stand.move_to))

    def move(store: Any) -> None:
        locator = vim.vm.RelocateSpec.DiskLocator(diskId=key, datastore=store)
        vsphere.wait(stand.machine.RelocateVM_Task(vim.vm.RelocateSpec(disk=[locator])))

    await stand.see(lambda: move(there))
    try:
        (disk,) = [each for each in copied(await stand.back_up()) if each["key"] == key]
        stand.evidence.append(f"after the move disk {key} was {disk['mode']} {disk['mode_reason']}".strip())
        if disk["mode_reason"] in {"identity_changed", "first_backup"}:
            raise CheckError(f"disk {key} was taken for another one after it moved: {disk['mode_reason']}")
    finally:
        await stand.see(lambda: move(home))


async def sessions_ended(stand: Stand) -> None:
    """An administrator ends Sendense's session during a backup: it goes on, or fails cleanly."""
    await stand.power(on=True)
    if await stand.see(stand.site.other_sessions) is None:
        raise CannotProvokeError("the user may not see sessions (privilege Sessions.TerminateSession)")
    job_id = await stand.start("--mode", "full")
    deadline = asyncio.get_running_loop().time() + _MOMENT_WITHIN_S
    while not await stand.see(lambda: vsphere.ours(stand.machine)):
        if asyncio.get_running_loop().time() > deadline or (await stand.job(job_id))["phase"] in _TOO_LATE:
            await stand.end(job_id)
            raise CannotProvokeError("the backup was over before its session could be ended")
    keys = await stand.see(stand.site.other_sessions)
    try:
        await stand.see(lambda: stand.site.end_sessions(keys or []))
    except vmodl.MethodFault as error:
        await stand.end(job_id)
        raise CannotProvokeError(f"the session could not be ended: {vsphere.words(error)}") from error
    if not keys:
        await stand.end(job_id)
        raise CannotProvokeError("the backup was over before its session could be ended")
    job = await stand.end(job_id)
    if job["state"] != "JOB_STATE_SUCCEEDED":
        reason = str(job["failure"]["reason"]).removeprefix("REASON_")
        if reason not in {"SOURCE_READ_FAILED", "VCENTER_SESSION_LOST"}:
            raise CheckError(f"it failed with {reason}: {job['failure']['message']}")


CHECKS: dict[str, Callable[[Stand], Awaitable[None]]] = {
    "twice": twice,
    "disk-grown": disk_grown,
    "disk-added": disk_added,
    "moved": moved,
    "tracking-reset": tracking_reset,
    "earlier-snapshot": earlier_snapshot,
    "snapshot-deleted": snapshot_deleted,
    "sessions-ended": sessions_ended,
    "powered-off": powered_off,
}
"""In the order in which they run; by the names that scenarios' files use (`outside.provoke`)."""
