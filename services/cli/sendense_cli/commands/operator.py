# SPDX-License-Identifier: Apache-2.0
"""`sendense operator`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from sendense.common.v1.reason_pb2 import Reason
from sendense.common.v1.role_pb2 import Role
from sendense.hub.v1 import operator_service_pb2 as pb
from sendense.hub.v1.operator_service_pb2_grpc import OperatorServiceStub
from sendense_cli import words
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, table
from sendense_common.errors import SendenseError
from sendense_common.private_file import create_private_file
from sendense_common.rpc.roles import role_name

app = typer.Typer(no_args_is_help=True, help="Who may use the hub's API over TCP, and how far.")
token = typer.Typer(no_args_is_help=True, help="Tokens: shown once, valid for a time, revoked at any time.")
certificate = typer.Typer(no_args_is_help=True, help="Client certificates, by their common name.")
app.add_typer(token, name="token")
app.add_typer(certificate, name="certificate")

_DAY_S = 86_400
_KINDS = {pb.OPERATOR_KIND_TOKEN: "token", pb.OPERATOR_KIND_CERTIFICATE: "certificate"}


class RoleWord(enum.StrEnum):
    """As people write it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def number(self) -> Role.ValueType:
        """As the contracts have it."""
        return Role.Value(f"ROLE_{self.value.upper()}")


Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the token; appears in logs.")]
CommonName = Annotated[str, typer.Argument(metavar="NAME", help="Common name of its subject.")]
RoleOption = Annotated[RoleWord, typer.Option("--role", help="What it may do; each includes the one before.")]


@app.command("list")
def list_(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List tokens and certificates that are let in, and when they expire.

    Example: sendense operator list
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await OperatorServiceStub(hub).ListOperators(pb.ListOperatorsRequest())
        rows = [
            [
                _KINDS.get(each.kind, "?"),
                each.name,
                role_name(each.role),
                words.moment(each.create_time),
                words.moment(each.expire_time) if each.HasField("expire_time") else "with the certificate",
                words.moment(each.last_used_time) if each.HasField("last_used_time") else "never",
            ]
            for each in answer.operators
        ]
        session.answer(answer, table(["KIND", "NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED"], rows))

    session.run(work())


@app.command()
def whoami(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show as whom the hub sees this caller, and the role.

    Example: sendense operator whoami
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await OperatorServiceStub(hub).GetCaller(pb.GetCallerRequest())
        local = answer.role == Role.ROLE_SERVICE
        role = "everything: this is the hub's own user" if local else role_name(answer.role)
        session.answer(answer, f"{answer.actor}: {role}")

    session.run(work())


@token.command("create")
def create_token(
    name: Name,
    role: RoleOption,
    days: Annotated[int, typer.Option(min=1, max=3650, metavar="N", help="How long it is valid.")] = 90,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it into a new file of mode 0600, and do not show it."),
    ] = None,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Make a token; it is shown this once, the hub keeps only its SHA-256.

    Example: sendense operator token create ada --role operator --output ada.token
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        if output is not None and output.exists():
            raise _exists(output)
        request = pb.CreateTokenRequest(name=name, role=role.number, lifetime=Duration(seconds=days * _DAY_S))
        async with session.hub() as hub:
            stub = OperatorServiceStub(hub)
            answer = await stub.CreateToken(request)
            if output is not None:
                try:
                    made = create_private_file(output.absolute(), answer.token.encode() + b"\n")
                except OSError as error:
                    await _revoke(stub, pb.OPERATOR_KIND_TOKEN, name)
                    raise SendenseError(
                        Reason.REASON_OUTPUT_UNWRITABLE,
                        f"{output}: {error.strerror}; the token was revoked",
                        remedy="Give a file in a directory that you can write to.",
                    ) from error
                if not made:
                    await _revoke(stub, pb.OPERATOR_KIND_TOKEN, name)
                    raise _exists(output)
                answer.token = ""
        until = words.moment(answer.operator.expire_time)
        text = f"token {name} ({role.value}), valid until {until}"
        if output is not None:
            session.answer(answer, f"{text}, is in {output}")
        else:
            session.answer(answer, f"{text}; it is not shown again:\n{answer.token}")

    session.run(work())


@token.command("revoke")
def revoke_token(name: Name, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Let a token in no longer, from now on; what it watches ends within seconds.

    Example: sendense operator token revoke ada
    """
    _remove(Session(state, as_json=as_json), pb.OPERATOR_KIND_TOKEN, name)


@certificate.command("add")
def add_certificate(
    name: CommonName, role: RoleOption, state: State = DEFAULT_STATE, as_json: Json = False
) -> None:
    """Let client certificates of a common name in, if a CA of --api-client-ca has signed them.

    Example: sendense operator certificate add ada --role viewer
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await OperatorServiceStub(hub).AddCertificate(
                pb.AddCertificateRequest(name=name, role=role.number)
            )
        session.answer(answer, f"certificates of {name} are let in ({role.value})")

    session.run(work())


@certificate.command("remove")
def remove_certificate(name: CommonName, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Let certificates of a common name in no longer, from now on.

    Example: sendense operator certificate remove ada
    """
    _remove(Session(state, as_json=as_json), pb.OPERATOR_KIND_CERTIFICATE, name)


def _remove(session: Session, kind: pb.OperatorKind.ValueType, name: str) -> None:
    async def work() -> None:
        async with session.hub() as hub:
            answer = await _revoke(OperatorServiceStub(hub), kind, name)
        session.answer(answer, f"the {_KINDS[kind]} {name} is let in no longer")

    session.run(work())


async def _revoke(
    stub: OperatorServiceStub, kind: pb.OperatorKind.ValueType, name: str
) -> pb.RevokeOperatorResponse:
    return await stub.RevokeOperator(pb.RevokeOperatorRequest(kind=kind, name=name))


def _exists(output: Path) -> SendenseError:
    return SendenseError(
        Reason.REASON_OUTPUT_EXISTS, f"{output} exists already", remedy="Give the name of a new file."
    )
