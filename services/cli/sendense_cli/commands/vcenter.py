# SPDX-License-Identifier: Apache-2.0
"""`sendense vcenter`."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer
from rich.markup import escape

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import credential_service_pb2 as credentials_pb
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_cli import vcenter_credential, vcenter_input, words
from sendense_cli.session import DEFAULT_STATE, NEEDS_CREDENTIALS, Json, Session, State, table
from sendense_cli.vcenter_input import CaFile, Name, PasswordFile, PasswordStdin, Thumbprint, Username
from sendense_common.errors import SendenseError, invalid

app = typer.Typer(no_args_is_help=True, help="vCenters: add, test, change, grant to agents, remove.")

Agent = Annotated[str, typer.Option(metavar="SITE", help="The site whose agent may open its password.")]


@app.command()
def add(
    name: Name,
    address: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Where it answers, seen from the site.")
    ],
    username: Username,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    thumbprint: Thumbprint = "",
    agent: Annotated[
        str, typer.Option(metavar="SITE", help="The site whose agent reaches it, and may open its password.")
    ] = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Add a vCenter. The password goes straight to the credentials service; nobody logs in yet.

    The password is bound to this address and this trust, and granted to this agent alone.

    Example: sendense vcenter add prod --address vc.example.net --username backup@vsphere.local
    --password-file pw --ca-file ca.pem
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        where = vcenter_input.endpoint(address, ca_file, thumbprint)
        secret = credentials_pb.Secret(
            username=username, password=vcenter_input.password(password_stdin, password_file), endpoint=where
        )
        async with session.hub() as hub, session.credentials() as channel:
            stub = CredentialServiceStub(channel)
            listed = await VcenterServiceStub(hub).ListVcenters(pb.ListVcentersRequest())
            if any(each.name == name for each in listed.vcenters):
                raise SendenseError(
                    Reason.REASON_VCENTER_EXISTS,
                    f"there is a vCenter {name!r} already",
                    remedy="Give another name, or change it: "
                    f"`sendense vcenter change {name} --address HOST --ca-file FILE`, "
                    f"`sendense vcenter password {name} --username USER --password-file FILE`.",
                )
            site = agent or await _only_agent(stub)
            vcenter = vcenter_input.for_hub(pb.Vcenter(name=name, site_name=site), where)
            vcenter.credential_id = await _store(stub, vcenter_credential.credential_name(name), secret, site)
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
        kept = await _credentials(session)
        rows = [
            [each.name, f"{each.host}:{each.port}", each.site_name, each.instance_uuid or "-",
             "CA" if each.ca_pem else "pinned", _password(each, kept),
             words.moment(each.create_time), _login(each)]
            for each in answer.vcenters
        ]  # fmt: skip
        columns = ["NAME", "ADDRESS", "SITE", "IDENTITY", "TRUST", "PASSWORD", "ADDED", "LOGIN"]
        session.answer(answer, table(columns, rows))

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
        lines = [f"{name} works: {answer.full_name}"]
        lines += [f"[yellow]the user lacks[/yellow] {escape(each)}" for each in answer.missing_privileges]
        session.answer(answer, "\n".join(lines))

    session.run(work())


@app.command()
def password(
    name: Name,
    username: Username,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    address: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Its address and trust anew, if the key was lost.")
    ] = "",
    ca_file: CaFile = None,
    thumbprint: Thumbprint = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Change the user and password that are used for a vCenter.

    Example: sendense vcenter password prod --username backup@vsphere.local --password-stdin < pw
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        session.only_at_the_centre(NEEDS_CREDENTIALS)
        found = await vcenter_credential.agreed(session, name)
        given = vcenter_input.password(password_stdin, password_file)
        secret = credentials_pb.Secret(username=username, password=given)
        if address:
            secret.endpoint.CopyFrom(vcenter_input.endpoint(address, ca_file, thumbprint))
        elif ca_file or thumbprint:
            raise invalid("--ca-file or --thumbprint", "goes together with --address")
        async with session.credentials() as channel:
            answer = await CredentialServiceStub(channel).RotateCredential(
                credentials_pb.RotateCredentialRequest(credential_id=found.credential_id, secret=secret)
            )
        async with session.hub() as hub:
            if address:
                vcenter = vcenter_input.for_hub(pb.Vcenter(name=name), secret.endpoint)
                await VcenterServiceStub(hub).ChangeVcenter(pb.ChangeVcenterRequest(vcenter=vcenter))
            await VcenterServiceStub(hub).NotePasswordChange(pb.NotePasswordChangeRequest(name=name))
        session.answer(answer.credential, f"changed; try it with: sendense vcenter test {name}")

    session.run(work())


@app.command()
def change(
    name: Name,
    address: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Where it answers, seen from the site.")
    ] = "",
    ca_file: CaFile = None,
    thumbprint: Thumbprint = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Change address or trust of a vCenter, as when it has a new certificate. What is not given stays.

    It stays as it is bound at the credentials service, and the hub is told the whole of that: a change that
    was cut off between the two is mended by any later one.

    Examples: sendense vcenter change prod --ca-file ca.pem; sendense vcenter change prod --address
    vc.example.net --thumbprint AB:CD:…
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        found = await vcenter_credential.agreed(session, name)
        where = vcenter_input.changed_endpoint(address, ca_file, thumbprint)
        async with session.credentials() as channel:
            bound = await CredentialServiceStub(channel).BindCredential(
                credentials_pb.BindCredentialRequest(credential_id=found.credential_id, endpoint=where)
            )
        # What is bound is what counts, and the hub is told the whole of it: what it says itself is not asked.
        # If this is cut off here, logins are refused until anything of it is said again.
        vcenter = vcenter_input.for_hub(pb.Vcenter(name=name), bound.endpoint)
        async with session.hub() as hub:
            request = pb.ChangeVcenterRequest(vcenter=vcenter)
            answer = await VcenterServiceStub(hub).ChangeVcenter(request)
        session.answer(answer.vcenter, f"changed; try it with: sendense vcenter test {name}")

    session.run(work())


@app.command()
def grant(name: Name, agent: Agent, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Let a site's agent open the password of a vCenter.

    Example: sendense vcenter grant prod --agent paris
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        found = await vcenter_credential.agreed(session, name)
        request = credentials_pb.GrantCredentialRequest(credential_id=found.credential_id, agent_id=agent)
        async with session.credentials() as channel:
            answer = await CredentialServiceStub(channel).GrantCredential(request)
        session.answer(answer.credential, f"{name} is granted to {_whom(answer.credential)}")

    session.run(work())


@app.command()
def ungrant(name: Name, agent: Agent, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Let a site's agent open the password of a vCenter no more. What is logged in already goes on.

    The hub is not asked: this works without it, and against it.

    Example: sendense vcenter ungrant prod --agent paris
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        found = await vcenter_credential.own(session, name)
        request = credentials_pb.UngrantCredentialRequest(credential_id=found.credential_id, agent_id=agent)
        async with session.credentials() as channel:
            answer = await CredentialServiceStub(channel).UngrantCredential(request)
        session.answer(answer.credential, f"{name} is granted to {_whom(answer.credential)}")

    session.run(work())


@app.command()
def remove(name: Name, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Forget a vCenter and its password. Its restore points stay.

    Example: sendense vcenter remove old
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        own = await vcenter_credential.own_or_none(session, name)  # before half of it is done
        async with session.hub() as hub:
            service = VcenterServiceStub(hub)
            removed = await service.RemoveVcenter(pb.RemoveVcenterRequest(name=name))
            left = (await service.ListVcenters(pb.ListVcentersRequest())).vcenters
        others = [each.name for each in left if own and each.credential_id == own.credential_id]
        if others:
            session.answer(removed, f"removed {name}; its password stays: {', '.join(others)} use it too")
            return
        if own:
            async with session.credentials() as channel:
                await _delete(CredentialServiceStub(channel), own.credential_id)
        session.answer(removed, f"removed {name}" + ("" if own else "; there was no password of its own"))

    session.run(work())


async def _delete(stub: CredentialServiceStub, credential_id: str) -> None:
    """Deletes a credential that nobody uses any more; leases that wait end. One that is gone is fine."""
    listed = await stub.ListCredentials(credentials_pb.ListCredentialsRequest())
    for credential in (each for each in listed.credentials if each.credential_id == credential_id):
        for agent in credential.agent_ids:
            await stub.UngrantCredential(
                credentials_pb.UngrantCredentialRequest(credential_id=credential_id, agent_id=agent)
            )
        await stub.DeleteCredential(credentials_pb.DeleteCredentialRequest(credential_id=credential_id))


def _whom(credential: credentials_pb.Credential) -> str:
    return ", ".join(credential.agent_ids) or "nobody"


async def _store(stub: CredentialServiceStub, name: str, secret: credentials_pb.Secret, agent: str) -> str:
    """Stores a secret and gives its ID. One of that name belongs to no vCenter: an `add` was cut off."""
    listed = await stub.ListCredentials(credentials_pb.ListCredentialsRequest())
    for left in (each for each in listed.credentials if each.name == name):
        await stub.DeleteCredential(credentials_pb.DeleteCredentialRequest(credential_id=left.credential_id))
    request = credentials_pb.StoreCredentialRequest(
        request_id=str(uuid.uuid4()), name=name, secret=secret, agent_ids=[agent]
    )
    return (await stub.StoreCredential(request)).credential.credential_id


async def _only_agent(stub: CredentialServiceStub) -> str:
    """The one agent that there is."""
    known = (await stub.ListAgents(credentials_pb.ListAgentsRequest())).agents
    if len(known) != 1:
        names = ", ".join(each.agent_id for each in known) or "none"
        raise invalid("--agent", f"is required: the credentials service knows {len(known)} agents ({names})")
    return known[0].agent_id


async def _credentials(session: Session) -> dict[str, credentials_pb.Credential] | None:
    """By ID; None when the credentials service cannot be asked: what the hub knows is shown all the same."""
    try:
        async with session.credentials() as channel:
            stub = CredentialServiceStub(channel)
            listed = await stub.ListCredentials(credentials_pb.ListCredentialsRequest())
    except SendenseError:
        return None
    return {each.credential_id: each for each in listed.credentials}


def _password(vcenter: pb.Vcenter, kept: dict[str, credentials_pb.Credential] | None) -> str:
    """Who may open it, and whether it may be sent to this vCenter."""
    if kept is None:
        return "?"
    credential = kept.get(vcenter.credential_id)
    if credential is None:
        return "[red]missing[/red]"
    if not credential.bound_to:
        return f"[yellow]{_whom(credential)}; not bound[/yellow]"
    if credential.bound_to != f"{vcenter.host}:{vcenter.port}":
        return f"[red]{_whom(credential)}; for {credential.bound_to}[/red]"
    return _whom(credential)


def _login(vcenter: pb.Vcenter) -> str:
    if not vcenter.HasField("login_refused_time"):
        return "-"
    return f"[red]refused {words.moment(vcenter.login_refused_time)}[/red]"
