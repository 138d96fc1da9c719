# SPDX-License-Identifier: Apache-2.0
"""A hub that names another credential for a vCenter: no command changes that, or gives it a password."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.credentials.kit import ENDPOINT, Service

import sendense.credentials.v1.credential_service_pb2 as credentials_pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2_grpc import (
    VcenterServiceServicer,
    add_VcenterServiceServicer_to_server,
)
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import Installation

pytestmark = pytest.mark.integration

NEW = ["--username", "u", "--password-file", "pw"]
WHERE = ["--address", "vc9.example.net", "--thumbprint", "11" * 32]


class SayingHub(VcenterServiceServicer):
    """One with a single vCenter, and the credential that the test has it say."""

    def __init__(self) -> None:
        self.credential_id = ""
        self.called: list[str] = []
        self.changed = pb.Vcenter()
        self.breaks_off = False
        """Whether it is away when something is to be changed."""

    async def ListVcenters(self, request: pb.ListVcentersRequest, context: Any) -> pb.ListVcentersResponse:
        vcenters = (
            [] if "remove" in self.called else [pb.Vcenter(name="prod", credential_id=self.credential_id)]
        )
        return pb.ListVcentersResponse(vcenters=vcenters)

    async def RemoveVcenter(self, request: pb.RemoveVcenterRequest, context: Any) -> pb.RemoveVcenterResponse:
        self.called.append("remove")
        return pb.RemoveVcenterResponse(credential_id=self.credential_id)

    async def ChangeVcenter(self, request: pb.ChangeVcenterRequest, context: Any) -> pb.ChangeVcenterResponse:
        if self.breaks_off:
            raise SendenseError(Reason.REASON_SERVICE_UNAVAILABLE, "away")
        self.called.append("change")
        self.changed = request.vcenter
        return pb.ChangeVcenterResponse(vcenter=request.vcenter)

    async def NotePasswordChange(
        self, request: pb.NotePasswordChangeRequest, context: Any
    ) -> pb.NotePasswordChangeResponse:
        self.called.append("password")
        return pb.NotePasswordChangeResponse()


class Centre:
    """The real credentials service, a hub that says what it wants, and the real `sendense`."""

    def __init__(self, service: Service, hub: SayingHub, directory: Path) -> None:
        self._service, self.hub, self._directory = service, hub, directory

    async def sendense(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code, and the answer or the error."""
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "sendense"), *arguments, f"--state={self._directory}", "--json",
            cwd=self._directory, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        return process.returncode or 0, json.loads(output) if output else json.loads(errors)["error"]

    async def kept(self) -> dict[str, credentials_pb.Credential]:
        """By name."""
        async with self._service.operator() as stub:
            listed = await stub.ListCredentials(credentials_pb.ListCredentialsRequest())
        return {each.name: each for each in listed.credentials}


@pytest.fixture
async def centre(service: Service, short_tmp: Path) -> AsyncIterator[Centre]:
    installation = Installation(short_tmp)
    for directory in (installation.hub.api_socket.parent, installation.credentials.operator_socket.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    installation.credentials.operator_socket.symlink_to(service.paths.operator_socket)
    (short_tmp / "pw").write_text("a new password")
    (short_tmp / "pw").chmod(0o600)
    hub = SayingHub()  # type: ignore[abstract]  # the other calls answer UNIMPLEMENTED
    served = rpc.Service("sendense.hub.v1.VcenterService", add_VcenterServiceServicer_to_server, hub)
    async with rpc.serve(installation.hub.api_socket, [served]):
        yield Centre(service, hub, short_tmp)
    async with service.operator() as stub:
        for each in (await stub.ListCredentials(credentials_pb.ListCredentialsRequest())).credentials:
            await stub.DeleteCredential(
                credentials_pb.DeleteCredentialRequest(credential_id=each.credential_id)
            )


@pytest.mark.parametrize(
    "command",
    [("password", *NEW), ("change", *WHERE), ("grant", "--agent=site-a")],
    ids=lambda command: command[0],
)
async def test_what_another_credential_is_named_for_is_refused_and_changes_nothing(
    centre: Centre, service: Service, command: tuple[str, ...]
):
    await service.store("vcenter/prod", granted=[])
    other = await service.store("vcenter/other", granted=[])
    before = await centre.kept()
    centre.hub.credential_id = other.credential_id
    code, error = await centre.sendense("vcenter", command[0], "prod", *command[1:])
    assert (code, error["reason"]) == (4, "VCENTER_NOT_AS_BOUND")
    assert f"names credential {other.credential_id}" in error["message"]
    assert await centre.kept() == before
    assert centre.hub.called == []


async def test_a_password_is_not_given_to_a_credential_of_another_name_when_there_is_none_of_its_own(
    centre: Centre, service: Service
):
    other = await service.store("of-nobody")
    before = await centre.kept()
    centre.hub.credential_id = other.credential_id
    code, error = await centre.sendense("vcenter", "password", "prod", *NEW)
    assert (code, error["reason"]) == (3, "CREDENTIAL_NOT_FOUND")
    # Such a vCenter can still be removed: what it shares stays.
    code, _ = await centre.sendense("vcenter", "remove", "prod")
    assert (code, centre.hub.called) == (0, ["remove"])
    assert await centre.kept() == before


async def test_removing_a_vcenter_takes_its_own_password_along_and_no_other(centre: Centre, service: Service):
    await service.store("vcenter/prod")
    other = await service.store("vcenter/other")
    centre.hub.credential_id = other.credential_id
    code, _ = await centre.sendense("vcenter", "remove", "prod")
    assert (code, set(await centre.kept())) == (0, {"vcenter/other"})


async def test_a_password_is_taken_back_from_an_agent_whatever_the_hub_says(centre: Centre, service: Service):
    await service.store("vcenter/prod", granted=["site-a"])
    centre.hub.credential_id = "another one"
    code, _ = await centre.sendense("vcenter", "ungrant", "prod", "--agent=site-a")
    assert code == 0
    assert list((await centre.kept())["vcenter/prod"].agent_ids) == []


async def test_with_a_hub_that_says_the_truth_the_password_changes_and_goes_with_its_vcenter(
    centre: Centre, service: Service
):
    stored = await service.store("vcenter/prod", granted=[])
    centre.hub.credential_id = stored.credential_id
    code, answer = await centre.sendense("vcenter", "password", "prod", *NEW)
    assert (code, answer["bound_to"]) == (0, f"{ENDPOINT.host}:{ENDPOINT.port}")
    assert (await centre.kept())["vcenter/prod"].rotate_time != stored.rotate_time
    code, _ = await centre.sendense("vcenter", "remove", "prod")
    assert (code, await centre.kept()) == (0, {})
    assert centre.hub.called == ["password", "remove"]


@pytest.mark.parametrize(
    ("given", "host", "digest"),
    [
        (("--thumbprint", "11" * 32), ENDPOINT.host, b"\x11" * 32),
        (("--address", "vc9.example.net"), "vc9.example.net", ENDPOINT.certificate_sha256),
        (WHERE, "vc9.example.net", b"\x11" * 32),
    ],
    ids=["trust alone", "address alone", "both"],
)
async def test_only_what_is_given_of_address_and_trust_is_changed(
    centre: Centre, service: Service, given: tuple[str, ...], host: str, digest: bytes
):
    stored = await service.store("vcenter/prod", granted=[])
    centre.hub.credential_id = stored.credential_id
    code, answer = await centre.sendense("vcenter", "change", "prod", *given)
    assert code == 0, answer
    kept = (await centre.kept())["vcenter/prod"]
    # The hub is told the whole of what the credentials service bound it to.
    told = centre.hub.changed
    assert (told.host, f"{told.host}:{told.port}") == (host, kept.bound_to)
    assert told.certificate_sha256 == digest != b""


@pytest.mark.parametrize(
    "again", [("--address", ENDPOINT.host), ("--thumbprint", "11" * 32)], ids=lambda given: given[0]
)
async def test_a_change_that_was_cut_off_between_the_two_is_mended_by_any_later_one(
    centre: Centre, service: Service, again: tuple[str, ...]
):
    stored = await service.store("vcenter/prod", granted=[])
    centre.hub.credential_id = stored.credential_id
    centre.hub.breaks_off = True
    code, _ = await centre.sendense("vcenter", "change", "prod", "--thumbprint", "11" * 32)
    assert (code, centre.hub.called) == (5, [])  # bound, and the hub does not know
    centre.hub.breaks_off = False
    code, _ = await centre.sendense("vcenter", "change", "prod", *again)
    assert (code, centre.hub.changed.certificate_sha256) == (0, b"\x11" * 32)


async def test_a_change_of_nothing_is_wrong_usage(centre: Centre, service: Service):
    stored = await service.store("vcenter/prod", granted=[])
    centre.hub.credential_id = stored.credential_id
    code, error = await centre.sendense("vcenter", "change", "prod")
    assert (code, centre.hub.called) == (2, [])
    assert "--address, --ca-file or --thumbprint" in error["message"]


async def test_doctor_names_each_password_that_goes_wherever_the_hub_says(centre: Centre, service: Service):
    await service.store("vcenter/prod")
    old = await service.store("vcenter/old")

    async def found() -> tuple[str, str]:
        checks = (await centre.sendense("doctor"))[1]["checks"]
        (check,) = [each for each in checks if each["name"] == "password.bound"]
        return check["status"], check["finding"].rpartition(": ")[2]

    assert (await found())[0] == "CHECK_STATUS_OK"
    with service.database() as database:
        database.execute("UPDATE credentials SET bound_to = '' WHERE credential_id = ?", [old.credential_id])
    assert await found() == ("CHECK_STATUS_WARNING", "old")
