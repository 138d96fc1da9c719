# SPDX-License-Identifier: Apache-2.0
"""`sendense doctor`."""

from __future__ import annotations

import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sendense.common.v1.act_pb2 import Act
from sendense.credentials.v1 import credential_service_pb2, key_service_pb2
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.credentials.v1.key_service_pb2_grpc import KeyServiceStub
from sendense.hub.v1 import system_service_pb2 as pb
from sendense.hub.v1.system_service_pb2_grpc import SystemServiceStub
from sendense_cli import act_view, check_view, vcenter_credential, words
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, as_dict, console
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import Installation

_PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "nbdkit": "nbdkit",
    "nbdinfo": "libnbd-bin",
    "setpriv": "util-linux",
}
_ANSWER_WITHIN_S = 2.0
# Longer than the credentials service waits for a provider of keys.
_KEYS_WITHIN_S = 30.0
_TOKEN_WARNING_S = 7 * 24 * 3600.0
# Longer than the hub waits for snapshots that it removes.
_REPAIR_WITHIN_S = 900.0


def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="First remove what jobs and killed processes have left.")
    ] = False,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Check tools, keys, services, sites and space: what is wrong, and how to mend it. Exit code 1 on errors.

    With --repair the hub first compares catalog, repositories, processes, sockets and vCenters' snapshots,
    as it does by itself every few minutes. What is provably nobody's is removed, the rest is told.

    Example: sendense doctor --repair
    """
    session = Session(state, as_json=as_json)

    async def work() -> int:
        acts: list[Act] = []
        if repair:
            async with session.hub() as hub:
                answer = await SystemServiceStub(hub).Reconcile(
                    pb.ReconcileRequest(), timeout=_REPAIR_WITHIN_S
                )
                acts += answer.acts
        checks: list[pb.Check] = []
        if not session.elsewhere:  # a hub elsewhere only knows its own host
            checks += _local(session.installation)
            socket = session.installation.credentials.operator_socket
            checks.append(await _answers(socket, "service.credentials"))
            keys = await _ask_keys(session)
            if keys and keys.provider != "local" and not session.installation.credentials.key_file.exists():
                checks = [check for check in checks if check.name != "key.credentials"]
            checks += _keys(keys) if keys else []
            checks += await _bound(session)
        try:
            async with session.hub() as hub:
                checks += (await SystemServiceStub(hub).Diagnose(pb.DiagnoseRequest(), timeout=30)).checks
        except SendenseError as error:
            checks.append(_check("service.hub", pb.CHECK_STATUS_ERROR, error.message, error.remedy))
        unique = {check.name: check for check in checks}
        found = list(unique.values())
        if as_json:
            told = as_dict(pb.DiagnoseResponse(checks=found))
            if repair:
                told["acts"] = as_dict(pb.ReconcileResponse(acts=acts))["acts"]
            session.answer(told, None)
        else:
            if repair:
                console.print(act_view.lines(acts))
            console.print(check_view.lines(found))
        return max(check_view.exit_for(found), act_view.exit_for(acts))

    session.run(work())


def _local(installation: Installation) -> Iterator[pb.Check]:
    version = sys.version.split()[0]
    yield _check("python", pb.CHECK_STATUS_OK, f"{version} at {sys.executable}")
    for name, package in _PACKAGES.items():
        path = shutil.which(name)
        if path:
            yield _check(f"tool.{name}", pb.CHECK_STATUS_OK, path)
        else:
            yield _check(
                f"tool.{name}", pb.CHECK_STATUS_ERROR, "is not installed", f"Install the package {package}."
            )
    yield _key("key.credentials", installation.credentials.key_file)
    yield _key("key.hub", installation.hub.host_key_file)


def _key(name: str, file: Path) -> pb.Check:
    if not file.exists():
        return _check(
            name, pb.CHECK_STATUS_ERROR, f"{file} is missing", "Run `sendense up` once: it makes keys."
        )
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        return _check(
            name, pb.CHECK_STATUS_ERROR, f"{file} can be read by others ({mode:o})", f"chmod 600 {file}"
        )
    return _check(name, pb.CHECK_STATUS_OK, f"{file} is private")


async def _ask_keys(session: Session) -> key_service_pb2.ListKeysResponse | None:
    """What the credentials service says of its keys; nothing when it is away, which is told elsewhere."""
    try:
        async with session.credentials() as channel:
            request = key_service_pb2.ListKeysRequest()
            return await KeyServiceStub(channel).ListKeys(request, timeout=_KEYS_WITHIN_S)
    except SendenseError:
        return None


def _keys(told: key_service_pb2.ListKeysResponse) -> list[pb.Check]:
    name = "key.provider"
    checks: list[pb.Check] = []
    for failure in (told.failure, told.rewrap_failure):
        if failure.message and not checks:
            checks.append(_check(name, pb.CHECK_STATUS_ERROR, failure.message, failure.remedy))
    if told.unreadable_count:
        checks.append(
            _check(
                "key.unreadable",
                pb.CHECK_STATUS_ERROR,
                f"{told.unreadable_count} passwords are under keys that are missing or do not fit",
                "`sendense credentials key list` names the keys. Restore them, or give the passwords anew "
                "with `sendense vcenter password NAME --username USER --password-file FILE`.",
            )
        )
    if checks:
        return checks
    finding = f"{told.provider}: {told.place}, active {told.active_key_id}"
    if told.pending_count:
        finding += f"; {told.pending_count} passwords are still to be brought under it"
    if told.HasField("token_end_time"):
        finding += f"; its token ends at {words.moment(told.token_end_time)}"
        left_s = told.token_end_time.seconds - time.time()
        if left_s < _TOKEN_WARNING_S:
            remedy = "Put a new token into its file in time: it is taken without a restart."
            return [_check(name, pb.CHECK_STATUS_WARNING, finding, remedy)]
    return [_check(name, pb.CHECK_STATUS_OK, finding)]


async def _bound(session: Session) -> list[pb.Check]:
    """Whether each password is bound to a vCenter; nothing when the credentials service is away."""
    try:
        async with session.credentials() as channel:
            request = credential_service_pb2.ListCredentialsRequest()
            answer = await CredentialServiceStub(channel).ListCredentials(request, timeout=_ANSWER_WITHIN_S)
    except SendenseError:
        return []
    unbound = [vcenter_credential.vcenter_name(each) for each in answer.credentials if not each.bound_to]
    name = "password.bound"
    if not unbound:
        return [_check(name, pb.CHECK_STATUS_OK, "each password is bound to a vCenter")]
    finding = f"go wherever the hub says, as they are bound to no vCenter: {', '.join(unbound)}"
    remedy = "Bind each: `sendense vcenter change NAME --address HOST --ca-file FILE`."
    return [_check(name, pb.CHECK_STATUS_WARNING, finding, remedy)]


async def _answers(socket: Path, name: str) -> pb.Check:
    try:
        await rpc.wait_healthy(socket, timeout_s=_ANSWER_WITHIN_S, what=name)
    except SendenseError as error:
        return _check(name, pb.CHECK_STATUS_ERROR, error.message, "Start it with `sendense up`.")
    return _check(name, pb.CHECK_STATUS_OK, f"answers at {socket}")


def _check(name: str, status: pb.CheckStatus.ValueType, finding: str, remedy: str = "") -> pb.Check:
    return pb.Check(name=name, status=status, finding=finding, remedy=remedy)
