# SPDX-License-Identifier: Apache-2.0
"""`sendense doctor`."""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from sendense.hub.v1 import system_service_pb2 as pb
from sendense.hub.v1.system_service_pb2_grpc import SystemServiceStub
from sendense_cli import check_view
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, console
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


def doctor(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Check tools, keys, services, sites and space: what is wrong, and how to mend it. Exit code 1 on errors.

    Example: sendense doctor
    """
    session = Session(state, as_json=as_json)

    async def work() -> int:
        checks = [*_local(session.installation)]
        checks.append(await _answers(session.installation.credentials.operator_socket, "service.credentials"))
        try:
            async with session.hub() as hub:
                checks += (await SystemServiceStub(hub).Diagnose(pb.DiagnoseRequest(), timeout=30)).checks
        except SendenseError as error:
            checks.append(_check("service.hub", pb.CHECK_STATUS_ERROR, error.message, error.remedy))
        unique = {check.name: check for check in checks}
        answer = pb.DiagnoseResponse(checks=unique.values())
        if as_json:
            session.answer(answer, None)
        else:
            console.print(check_view.lines(answer.checks))
        return check_view.exit_for(answer.checks)

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


async def _answers(socket: Path, name: str) -> pb.Check:
    try:
        await rpc.wait_healthy(socket, timeout_s=_ANSWER_WITHIN_S, what=name)
    except SendenseError as error:
        return _check(name, pb.CHECK_STATUS_ERROR, error.message, "Start it with `sendense up`.")
    return _check(name, pb.CHECK_STATUS_OK, f"answers at {socket}")


def _check(name: str, status: pb.CheckStatus.ValueType, finding: str, remedy: str = "") -> pb.Check:
    return pb.Check(name=name, status=status, finding=finding, remedy=remedy)
