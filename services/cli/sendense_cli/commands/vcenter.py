# SPDX-License-Identifier: Apache-2.0
"""`sendense vcenter`."""

from __future__ import annotations

import contextlib
import sys
import uuid
from pathlib import Path
from typing import Annotated

import grpc
import typer

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import credential_service_pb2 as credentials_pb
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_cli import words
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, table
from sendense_common.errors import SendenseError, invalid

app = typer.Typer(no_args_is_help=True, help="vCenters: add, list, test, change the password, remove.")

_HTTPS = 443
_SHA256_BYTES = 32
_LONGEST_PASSWORD_BYTES = 4096
Name = Annotated[str, typer.Argument(help="The vCenter's name here.")]
PasswordStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin", help="Read the password from standard input; one final newline is dropped."
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(metavar="F", help="Read the password from a file; one final newline is dropped."),
]


@app.command()
def add(
    name: Name,
    address: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Where it answers, seen from the site.")
    ],
    username: Annotated[str, typer.Option(metavar="U", help="User, as administrator@vsphere.local.")],
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="F", help="PEM file of the authority that signed its certificate.")
    ] = None,
    thumbprint: Annotated[
        str, typer.Option(metavar="SHA256", help="SHA-256 of its certificate, as AB:CD:….")
    ] = "",
    agent: Annotated[str, typer.Option(metavar="SITE", help="The site whose agent reaches it.")] = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Add a vCenter. The password goes straight to the credentials service; nobody logs in yet.

    Example: sendense vcenter add prod --address vc.example.net --username backup@vsphere.local
    --password-file pw --ca-file ca.pem
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        host, port = _address(address)
        vcenter = pb.Vcenter(name=name, host=host, port=port, site_name=agent)
        _trust(vcenter, ca_file, thumbprint)
        secret = credentials_pb.Secret(username=username, password=_password(password_stdin, password_file))
        async with session.hub() as hub, session.credentials() as channel:
            stub = CredentialServiceStub(channel)
            listed = await VcenterServiceStub(hub).ListVcenters(pb.ListVcentersRequest())
            if any(each.name == name for each in listed.vcenters):
                raise SendenseError(
                    Reason.REASON_VCENTER_EXISTS,
                    f"there is a vCenter {name!r} already",
                    remedy="Give another name, remove it first, or change its password with "
                    "`sendense vcenter password`.",
                )
            vcenter.credential_id = await _store(stub, f"vcenter/{name}", secret)
            try:
                kept = await VcenterServiceStub(hub).AddVcenter(pb.AddVcenterRequest(vcenter=vcenter))
            except BaseException:
                await stub.DeleteCredential(
                    credentials_pb.DeleteCredentialRequest(credential_id=vcenter.credential_id)
                )
                raise
        session.answer(kept.vcenter, f"added {name}; try it with: sendense vcenter test {name}")

    session.run(work())


@app.command("list")
def list_(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List all vCenters.

    Example: sendense vcenter list
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await VcenterServiceStub(hub).ListVcenters(pb.ListVcentersRequest())
        rows = [
            [each.name, f"{each.host}:{each.port}", each.site_name, each.instance_uuid or "-",
             "CA" if each.ca_pem else "pinned", words.moment(each.create_time), _login(each)]
            for each in answer.vcenters
        ]  # fmt: skip
        session.answer(
            answer, table(["NAME", "ADDRESS", "SITE", "IDENTITY", "TRUST", "ADDED", "LOGIN"], rows)
        )

    session.run(work())


@app.command("test")
def check(name: Name, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Log in once through the site's agent, and say what is wrong if it does not work.

    Example: sendense vcenter test prod
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await VcenterServiceStub(hub).TestVcenter(pb.TestVcenterRequest(name=name))
        session.answer(answer, f"{name} works: {answer.full_name}")

    session.run(work())


@app.command()
def password(
    name: Name,
    username: Annotated[str, typer.Option(metavar="U", help="User, as administrator@vsphere.local.")],
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Change the user and password that are used for a vCenter.

    Example: sendense vcenter password prod --username backup@vsphere.local --password-stdin < pw
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        secret = credentials_pb.Secret(username=username, password=_password(password_stdin, password_file))
        async with session.hub() as hub:
            listed = await VcenterServiceStub(hub).ListVcenters(pb.ListVcentersRequest())
        found = next((each for each in listed.vcenters if each.name == name), None)
        if found is None:
            raise SendenseError(Reason.REASON_VCENTER_NOT_FOUND, f"there is no vCenter {name!r}")
        async with session.credentials() as channel:
            answer = await CredentialServiceStub(channel).RotateCredential(
                credentials_pb.RotateCredentialRequest(credential_id=found.credential_id, secret=secret)
            )
        async with session.hub() as hub:
            await VcenterServiceStub(hub).NotePasswordChange(pb.NotePasswordChangeRequest(name=name))
        session.answer(answer.credential, f"changed; try it with: sendense vcenter test {name}")

    session.run(work())


@app.command()
def remove(name: Name, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Forget a vCenter and its password. Its restore points stay.

    Example: sendense vcenter remove old
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            removed = await VcenterServiceStub(hub).RemoveVcenter(pb.RemoveVcenterRequest(name=name))
        async with session.credentials() as channel:
            request = credentials_pb.DeleteCredentialRequest(credential_id=removed.credential_id)
            try:
                await CredentialServiceStub(channel).DeleteCredential(request)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
        session.answer(removed, f"removed {name}")

    session.run(work())


async def _store(stub: CredentialServiceStub, name: str, secret: credentials_pb.Secret) -> str:
    """Stores a secret and gives its ID. One of that name belongs to no vCenter: an `add` was cut off."""
    listed = await stub.ListCredentials(credentials_pb.ListCredentialsRequest())
    for left in (each for each in listed.credentials if each.name == name):
        await stub.DeleteCredential(credentials_pb.DeleteCredentialRequest(credential_id=left.credential_id))
    request = credentials_pb.StoreCredentialRequest(request_id=str(uuid.uuid4()), name=name, secret=secret)
    return (await stub.StoreCredential(request)).credential.credential_id


def _login(vcenter: pb.Vcenter) -> str:
    if not vcenter.HasField("login_refused_time"):
        return "-"
    return f"[red]refused {words.moment(vcenter.login_refused_time)}[/red]"


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        return text.strip("[]"), _HTTPS
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise invalid("--address", f"{text!r} is not HOST or HOST:PORT")
    return host.strip("[]"), int(port)


def _trust(vcenter: pb.Vcenter, ca_file: Path | None, thumbprint: str) -> None:
    if (ca_file is None) == (not thumbprint):
        raise invalid(
            "--ca-file or --thumbprint",
            "give exactly one of them",
            remedy="openssl s_client -connect HOST:443 </dev/null | openssl x509 -noout -fingerprint -sha256 "
            "shows what it presents; compare it with the vCenter's own console.",
        )
    if ca_file is not None:
        try:
            vcenter.ca_pem = ca_file.read_text()
        except (OSError, UnicodeError) as error:
            raise invalid("--ca-file", f"{ca_file}: {error}") from error
        return
    try:
        digest = bytes.fromhex(thumbprint.rpartition("=")[2].replace(":", "").strip())
    except ValueError:
        digest = b""
    if len(digest) != _SHA256_BYTES:
        raise invalid("--thumbprint", "must be the SHA-256 of the certificate: 64 hex digits")
    vcenter.certificate_sha256 = digest


def _password(from_stdin: bool, file: Path | None) -> str:
    if from_stdin == (file is not None):
        raise invalid(
            "--password-stdin or --password-file",
            "give exactly one of them",
            remedy="A password is never given on the command line: everybody can read that.",
        )
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if file is None else file.open("rb") as source:
            data = source.read(_LONGEST_PASSWORD_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeError) as error:
        raise invalid("password", f"cannot be read: {error}") from error
    if len(data) > _LONGEST_PASSWORD_BYTES:
        raise invalid("password", f"has more than {_LONGEST_PASSWORD_BYTES} bytes")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
