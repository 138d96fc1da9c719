# SPDX-License-Identifier: Apache-2.0
"""The checks of `sendense-lab accept` against a product and a vSphere that are played: each can fail."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim

from sendense_lab.accept import site as vsphere
from sendense_lab.accept.checks import CHECKS
from sendense_lab.accept.run import AcceptOptions, run_accept
from sendense_lab.accept.site import Address
from sendense_lab.accept.stand import AcceptError, CannotProvokeError, CheckError, Stand

pytestmark = pytest.mark.unit

SUCCEEDED, FAILED = "JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED"


def disk(key: int, mode: str = "incremental", reason: str = "", state: str = "COPIED") -> dict[str, Any]:
    return {"key": key, "mode": mode, "mode_reason": reason, "state": f"DISK_STATE_{state}"}


def job(
    *disks: dict[str, Any], state: str = SUCCEEDED, reason: str = "", phase: str = "DONE"
) -> dict[str, Any]:
    return {
        "job_id": "j",
        "point_id": "p",
        "state": state,
        "phase": f"JOB_PHASE_{phase}",
        "disks": list(disks),
        "warnings": [],
        "attempt": 1,
        "failure": {"reason": reason, "message": f"failed with {reason}"} if reason else None,
    }


BOTH = job(disk(2000), disk(2001))
"""A backup of both disks, incremental."""
DISTRUSTED = disk(2000, "full", "change_id_rejected")


class Product:
    """Gives the jobs one after another; each is asked for a second time when it has ended."""

    def __init__(self, jobs: list[dict[str, Any]], exported: bytes = b"data") -> None:
        self.jobs = jobs
        self.exported = exported

    async def run(self, *arguments: str, secret: str = "") -> tuple[int, Any]:
        return 0, {"job_id": "j"}

    async def ask(self, *arguments: str, secret: str = "") -> Any:
        if arguments[:2] == ("job", "show"):
            return self.jobs.pop(0)
        Path(arguments[arguments.index("--output") + 1]).write_bytes(self.exported)
        return {}


class Machine:
    """A VM whose tasks end at once."""

    def __init__(self) -> None:
        self.runtime = SimpleNamespace(powerState=vim.VirtualMachine.PowerState.poweredOn)
        self.snapshot = SimpleNamespace(RemoveSnapshot_Task=lambda children, consolidate: None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self.snapshot


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stand]:
    monkeypatch.setattr(vsphere, "wait", lambda task: task)
    monkeypatch.setattr(vsphere, "track", lambda machine, on: None)
    monkeypatch.setattr(vsphere, "change_disk", lambda *arguments: None)

    def make(*jobs: dict[str, Any], keys: tuple[int, ...] = (2000, 2001), there: str = "") -> Stand:
        have = [SimpleNamespace(key=key, capacityInBytes=1 << 20) for key in keys]
        monkeypatch.setattr(vsphere, "disks", lambda machine: have)
        left = [SimpleNamespace(snapshot=Machine().snapshot, name="s", description="")] if there else []
        monkeypatch.setattr(vsphere, "ours", lambda machine: left)
        monkeypatch.setattr(vsphere, "snapshots", lambda machine: [])
        site = SimpleNamespace(sha256=lambda machine, disk: "none", other_sessions=list)
        product: Any = Product(list(jobs))
        made: Any = site
        return Stand(product, made, Machine(), "vm", "vc")

    return make


@pytest.mark.parametrize(
    ("check", "jobs", "words"),
    [
        ("twice", [job(disk(2000)), job(disk(2000))], "the job names"),
        ("twice", [job(disk(2000), disk(2001, state="SKIPPED"))], "no reason is given"),
        ("twice", [job(state=FAILED, reason="INTERNAL")], "the backup failed"),
        ("twice", [BOTH, job(disk(2000), disk(2001, "full", "x"))], "not incremental: x"),
        ("twice", [BOTH, BOTH], "restores"),
        ("tracking-reset", [BOTH, job(DISTRUSTED, disk(2001))], "disk 2001: incremental"),
        ("disk-grown", [BOTH, BOTH], "disk 2001 grew"),
        ("earlier-snapshot", [job(state=FAILED, reason="INTERNAL")], "for another reason"),
        ("earlier-snapshot", [BOTH], "the other's snapshot is gone"),
        ("snapshot-deleted", [job(phase="COPY"), BOTH], "succeeded all the same"),
    ],
)
async def test_what_is_wrong_fails(
    stand: Callable[..., Stand], check: str, jobs: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(CheckError, match=words):
        await CHECKS[check](stand(*jobs, there="yes" if check == "snapshot-deleted" else ""))


async def test_a_snapshot_that_was_deleted_too_late_proves_nothing(stand: Callable[..., Stand]) -> None:
    with pytest.raises(CannotProvokeError, match="larger VM"):
        await CHECKS["snapshot-deleted"](stand(job(phase="COMMIT"), job(disk(2000)), there="yes"))


async def test_without_a_place_to_move_to_nothing_is_moved(stand: Callable[..., Stand]) -> None:
    with pytest.raises(CannotProvokeError, match="--move-to"):
        await CHECKS["moved"](stand())


async def test_what_is_left_is_said(stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sendense_lab.accept.stand._LEFT_WITHIN_S", 0)
    await stand().nothing_left()
    with pytest.raises(CheckError, match="snapshot s"):
        await stand(there="yes").nothing_left()


@pytest.mark.parametrize(("vms", "may"), [([], []), (["a"], []), (["a"], ["b"]), (["a"], ["a", "b"])])
async def test_it_begins_only_when_the_same_vms_are_named_twice(vms: list[str], may: list[str]) -> None:
    options = AcceptOptions(Path("/none"), Address("127.0.0.1", 1, "/none"), "u", "p", vms, may)
    with pytest.raises(AcceptError, match="--i-may-destroy-this-vm"):
        await run_accept(options)


async def test_a_check_that_there_is_not() -> None:
    options = AcceptOptions(
        Path("/none"), Address("127.0.0.1", 1, "/none"), "u", "p", ["a"], ["a"], only=["thrice"]
    )
    with pytest.raises(AcceptError, match="thrice; there are twice"):
        await run_accept(options)


def test_another_certificate_than_the_pinned_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "get_server_certificate", lambda *_, **__: "pem")
    monkeypatch.setattr(ssl, "PEM_cert_to_DER_cert", lambda pem: b"der")
    with pytest.raises(ValueError, match="shows a certificate"):
        Address("vc", 443, thumbprint="AB:CD").context()
