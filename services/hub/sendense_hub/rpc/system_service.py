# SPDX-License-Identifier: Apache-2.0
"""SystemService."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import grpc

from sendense.hub.v1 import system_service_pb2 as pb
from sendense.hub.v1.system_service_pb2_grpc import SystemServiceServicer
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import CredentialsPaths, HubPaths
from sendense_hub.catalog import cleanups, jobs, sites, vcenters, verifications
from sendense_hub.clients.sites import protocol_of
from sendense_hub.domain.invitations import OPEN, PENDING, SPENT
from sendense_hub.domain.job_rules import ACTIVE
from sendense_hub.jobs.audit_watch import AuditWatch
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.jobs.reconciliation import Reconciler
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import programs
from sendense_hub.rpc.door import Door

_Context = grpc.aio.ServicerContext[Any, Any]
_TOOLS = {
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "nbdinfo": "libnbd-bin",
    "setpriv": "util-linux",
}
_LITTLE_SPACE = 0.1
_OLD_SNAPSHOT = "snapshot_old"
_MANY = 10_000
_SHOWN = 8
_ANSWER_WITHIN_S = 2.0


class SystemService(SystemServiceServicer):
    """What the hub says about itself."""

    def __init__(
        self,
        workshop: Workshop,
        reconciler: Reconciler,
        enrolment: Enrolment,
        watch: AuditWatch,
        paths: HubPaths,
        credentials: CredentialsPaths,
        door: Door,
    ) -> None:
        self._workshop = workshop
        self._watch = watch
        self._reconciler = reconciler
        self._enrolment = enrolment
        self._paths = paths
        self._credentials = credentials
        self._door = door

    async def ListRepositories(
        self, request: pb.ListRepositoriesRequest, context: _Context
    ) -> pb.ListRepositoriesResponse:
        """See the contract."""
        answer = pb.ListRepositoriesResponse()
        for name, repository in sorted(self._workshop.repositories.items()):
            space = repository.space()
            answer.repositories.add(
                name=name,
                path=str(repository.root),
                free_bytes=space.free_bytes,
                total_bytes=space.total_bytes,
            )
        return answer

    async def Diagnose(self, request: pb.DiagnoseRequest, context: _Context) -> pb.DiagnoseResponse:
        """See the contract."""
        checks = [await _tool(name, package) for name, package in _TOOLS.items()]
        checks.append(await self._credentials_answer())
        checks += self._listener()
        checks += await self._door.checks()
        checks += [self._space(name) for name in sorted(self._workshop.repositories)]
        checks += await self._sites()
        checks += await self._invitations()
        checks += await self._logins()
        checks.append(await self._leftovers())
        checks += await self._audit_logs()
        checks.append(await self._old_snapshots())
        checks.append(await self._damaged_points())
        return pb.DiagnoseResponse(checks=checks)

    async def Reconcile(self, request: pb.ReconcileRequest, context: _Context) -> pb.ReconcileResponse:
        """See the contract."""
        # A caller that hangs up leaves nothing half done, or unlocked while it goes on.
        return pb.ReconcileResponse(acts=await asyncio.shield(self._reconciler.by_hand()))

    async def _credentials_answer(self) -> pb.Check:
        try:
            await rpc.wait_healthy(
                self._credentials.hub_socket, timeout_s=_ANSWER_WITHIN_S, what="the credentials service"
            )
        except SendenseError as error:
            return _check("credentials", pb.CHECK_STATUS_ERROR, error.message, "Start it, or read its log.")
        return _check("credentials", pb.CHECK_STATUS_OK, f"answers at {self._credentials.hub_socket}")

    def _listener(self) -> list[pb.Check]:
        try:
            endpoint = self._paths.endpoint_file.read_text().strip()
            limits = self._paths.ssh_limits_file.read_text().strip()
        except FileNotFoundError:
            return [
                _check("ssh.listener", pb.CHECK_STATUS_ERROR, "no agent can connect", "Read the hub's log.")
            ]
        return [
            _check("ssh.listener", pb.CHECK_STATUS_OK, f"agents dial {endpoint}"),
            _check("ssh.limits", pb.CHECK_STATUS_OK, limits),
        ]

    def _space(self, name: str) -> pb.Check:
        repository = self._workshop.repositories[name]
        what = f"repository.{name}"
        try:
            space = repository.space()
        except SendenseError as error:
            return _check(what, pb.CHECK_STATUS_ERROR, error.message, error.remedy)
        share = space.free_bytes / space.total_bytes
        finding = f"{repository.root}: {space.free_bytes / 2**30:.1f} GiB free ({share:.0%})"
        if share < _LITTLE_SPACE:
            return _check(what, pb.CHECK_STATUS_WARNING, finding, "Delete old points or add space soon.")
        return _check(what, pb.CHECK_STATUS_OK, finding)

    async def _sites(self) -> list[pb.Check]:
        listed = await self._workshop.catalog.run(sites.listed)
        found = await asyncio.gather(*(self._workshop.sites.look(site.name) for site in listed))
        checks = []
        for site, agent in zip(listed, found, strict=True):
            what = f"site.{site.name}"
            if site.HasField("revoke_time"):
                moment = site.revoke_time.ToDatetime().strftime("%Y-%m-%d %H:%M UTC")
                checks.append(
                    _check(what, pb.CHECK_STATUS_OK, f"was revoked on {moment}: nothing is done there")
                )
                continue
            if agent is None:
                checks.append(
                    _check(
                        what,
                        pb.CHECK_STATUS_ERROR,
                        "its agent is not connected",
                        "Start it, or read its log.",
                    )
                )
                continue
            try:
                protocol_of(agent, site.name)
            except SendenseError as error:
                checks.append(_check(what, pb.CHECK_STATUS_ERROR, error.message, error.remedy))
                continue
            checks.append(_check(what, pb.CHECK_STATUS_OK, f"agent {agent.version} is connected"))
            checks += [
                _check(f"{what}.{tool}", pb.CHECK_STATUS_ERROR, "is not installed there", f"Install {tool}.")
                for tool, version in sorted(agent.tools.items())
                if not version
            ]
        return checks

    async def _invitations(self) -> list[pb.Check]:
        """Which sites wait to be let in, and which were not."""
        made = []
        for each in await self._enrolment.listed():
            what = f"invitation.{each.site}"
            if each.state == PENDING:
                words = "an agent shows keys, and waits for approval"
                remedy = f"Compare fingerprints: `sendense agent approve {each.site}`."
                made.append(_check(what, pb.CHECK_STATUS_WARNING, words, remedy))
            elif each.state == OPEN:
                made.append(_check(what, pb.CHECK_STATUS_OK, "nobody has used its code yet"))
            elif each.state == SPENT:
                remedy = f"If the site is to be let in: `sendense agent invite {each.site}`."
                made.append(_check(what, pb.CHECK_STATUS_WARNING, f"useless: {each.why}", remedy))
        return made

    async def _logins(self) -> list[pb.Check]:
        """Which vCenters have refused a password, so that nothing logs in there any more."""
        made = []
        for vcenter in await self._workshop.catalog.run(vcenters.listed):
            what = f"vcenter.{vcenter.name}"
            if vcenter.HasField("login_refused_time"):
                moment = vcenter.login_refused_time.ToDatetime().strftime("%Y-%m-%d %H:%M UTC")
                made.append(
                    _check(
                        what,
                        pb.CHECK_STATUS_ERROR,
                        f"refused the password on {moment}; nothing logs in there since",
                        "Change it with "
                        f"`sendense vcenter password {vcenter.name} --username USER --password-file FILE`, "
                        f"or try it with `sendense vcenter test {vcenter.name}`.",
                    )
                )
            else:
                made.append(_check(what, pb.CHECK_STATUS_OK, "has not refused its password"))
        return made

    async def _leftovers(self) -> pb.Check:
        pending = await self._workshop.catalog.run(cleanups.listed)
        if not pending:
            return _check("snapshots", pb.CHECK_STATUS_OK, "no ended job has left one")
        names = ", ".join(f"{each.vm_name} (job {each.job_id[:8]})" for each in pending)
        return _check(
            "snapshots",
            pb.CHECK_STATUS_WARNING,
            f"ended jobs may have left one: {names}",
            "The hub goes on trying; it needs the site connected and the password right.",
        )

    async def _audit_logs(self) -> list[pb.Check]:
        """Those that cannot be written, and those that are not the ones that were seen before."""
        found = await self._watch.problems()
        if not found:
            return [_check("audit_logs", pb.CHECK_STATUS_OK, "are written, and go on where they were seen")]
        return [
            _check(
                f"audit_logs.{name}",
                pb.CHECK_STATUS_ERROR,
                words,
                "`sendense audit verify` looks at all of it; docs/audit.md says what to do.",
            )
            for name, words in sorted(found.items())
        ]

    async def _old_snapshots(self) -> pb.Check:
        """What agents warned of when a snapshot reached half of the age at which it goes."""
        name = "snapshots.age"
        active = await self._workshop.catalog.run(
            lambda connection: jobs.listed(connection, states=sorted(ACTIVE), limit=_MANY)
        )
        old = [job for job in active if any(warning.code == _OLD_SNAPSHOT for warning in job.warnings)]
        if not old:
            return _check(name, pb.CHECK_STATUS_OK, "no running job has an old one")
        return _check(
            name,
            pb.CHECK_STATUS_WARNING,
            "running jobs have old ones: "
            + ", ".join(f"{job.vm_name} (job {job.job_id[:8]})" for job in old),
            "It grows until the job ends, and goes at its maximum age: see `sendense job show JOB`.",
        )

    async def _damaged_points(self) -> pb.Check:
        """What verifications, exports and backups have found."""
        found = await self._workshop.catalog.run(verifications.damaged)
        if not found:
            return _check("points", pb.CHECK_STATUS_OK, "none is known to be damaged")
        shown = ", ".join(point_id[:8] for point_id in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return _check(
            "points",
            pb.CHECK_STATUS_ERROR,
            f"damaged: {shown}{more}",
            "`sendense point show POINT` says what is wrong. Restore the files from a copy of the repository "
            "and verify the point, or delete it; the next backup of its disks is a full.",
        )


async def _tool(name: str, package: str) -> pb.Check:
    what = f"tool.{name}"
    if shutil.which(name) is None:
        return _check(what, pb.CHECK_STATUS_ERROR, "is not installed", f"Install the package {package}.")
    answer = await programs.run(name, "--version")
    first = (answer.output.decode(errors="replace").splitlines() or ["?"])[0]
    return _check(what, pb.CHECK_STATUS_OK, first)


def _check(name: str, status: pb.CheckStatus.ValueType, finding: str, remedy: str = "") -> pb.Check:
    return pb.Check(name=name, status=status, finding=finding, remedy=remedy)
