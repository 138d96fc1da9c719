# SPDX-License-Identifier: Apache-2.0
"""`sendense agent`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from typing import Annotated, NoReturn

import typer

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import credential_service_pb2 as credentials_pb
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import invitation_service_pb2 as pb
from sendense.hub.v1 import site_service_pb2
from sendense.hub.v1.invitation_service_pb2_grpc import InvitationServiceStub
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense_cli import agent_view, agents, words
from sendense_cli.agents import KnownAgent
from sendense_cli.exits import show_warning
from sendense_cli.remote import is_loopback
from sendense_cli.session import DEFAULT_STATE, NEEDS_CREDENTIALS, Json, Session, State
from sendense_common.errors import SendenseError, invalid
from sendense_common.keys import AgentIdentity, parse_ssh_key

app = typer.Typer(no_args_is_help=True, help="Agents of sites: let in, list, give new keys, put out.")

_WILDCARDS = frozenset({"0.0.0.0", "::", "[::]", ""})  # noqa: S104 - compared with
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):([1-9]\d{0,4})", re.ASCII)
_SITE_STATE = "/var/lib/sendense/agent"
_LISTEN_FOR_OTHERS = (
    "Stop the hub and start it with `sendense up --listen 0.0.0.0:8022` (or --listen of sendense-hub); "
    "then invite with --hub HOST:PORT, as the site reaches it."
)
_AGENT_MODULE = "sendense_agent.main"
Site = Annotated[str, typer.Argument(metavar="SITE", help="Name of the site.")]
Hub = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="Where the site reaches the hub; needed where it listens on all."),
]


@app.command()
def invite(site: Site, hub: Hub = "", state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Print the line that lets a new site in. Its code is good for ten minutes, once.

    Example: sendense agent invite paris --hub backup.example.net:8022
    """
    session = Session(state, as_json=as_json)
    session.run(invite_agent(session, site, hub, rotate=False))


@app.command("list")
def list_(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List the agents of all sites, and those that wait to be let in.

    Example: sendense agent list
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        found = await agents.known(session)
        session.answer({"agents": [each.as_dict() for each in found]}, agent_view.rows(found))

    session.run(work())


@app.command()
def show(site: Site, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show one agent with its fingerprints and its invitation.

    Example: sendense agent show paris
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        found = await _one(session, site)
        session.answer(found.as_dict(), agent_view.details(found))

    session.run(work())


@app.command()
def approve(
    site: Site,
    fingerprint: Annotated[
        str,
        typer.Option(
            metavar="SHA256:…", help="What the agent at the site shows; a wrong one ends the invitation."
        ),
    ] = "",
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Let an agent in after its fingerprint was compared. Asks, unless the fingerprint is given.

    Example: sendense agent approve paris
    """
    session = Session(state, as_json=as_json)
    session.run(approve_agent(session, site, fingerprint))


@app.command()
def reject(site: Site, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Make an invitation useless, whether its code was used or not.

    Example: sendense agent reject paris
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            await InvitationServiceStub(hub).RejectInvitation(pb.RejectInvitationRequest(site_name=site))
        session.answer({"site": site, "rejected": True}, f"the invitation of site {site} is useless now")

    session.run(work())


@app.command()
def revoke(site: Site, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Put an agent out. Its connections are cut within seconds, its keys open nothing, its jobs fail.

    Restore points stay. A snapshot that one of its jobs had at the vCenter stays until the site is let in
    again, or its agent finds it too old.

    Example: sendense agent revoke paris
    """
    session = Session(state, as_json=as_json)
    session.run(revoke_agent(session, site))


@app.command("rotate-key")
def rotate_key(site: Site, hub: Hub = "", state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Print the line that gives a known site new keys. The old ones are good until the new are approved.

    Example: sendense agent rotate-key paris --hub backup.example.net:8022
    """
    session = Session(state, as_json=as_json)
    session.run(invite_agent(session, site, hub, rotate=True))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def enroll(context: typer.Context) -> NoReturn:
    """Have this host's agent let in, as `sendense-agent enroll` does: the line of an invitation.

    Example: sendense agent enroll --state /var/lib/sendense/agent --hub backup.example.net:8022
    --hub-fingerprint SHA256:… --site paris --code XXXX-XXXX-XXXX
    """
    os.execv(sys.executable, [sys.executable, "-m", _AGENT_MODULE, "enroll", *context.args])  # noqa: S606


async def approve_agent(session: Session, site: str, fingerprint: str = "") -> None:
    """Lets an agent in whose fingerprint is right.

    Args:
        session: the command's.
        site: its name.
        fingerprint: what the agent shows; empty: a person is asked.

    Raises:
        SendenseError: FINGERPRINT_MISMATCH, and the invitation is of no use any more; INVITATION_NOT_FOUND.
    """
    session.only_at_the_centre(NEEDS_CREDENTIALS)
    found = await _one(session, site)
    identity = _waiting(found)
    right = await _compared(found, identity, fingerprint, as_json=session.as_json)
    async with session.hub() as hub:
        invitations = InvitationServiceStub(hub)
        if not right:
            why = "at approval, another fingerprint was given" if fingerprint else "an operator said no"
            await invitations.RejectInvitation(pb.RejectInvitationRequest(site_name=site, why=why))
            raise SendenseError(
                Reason.REASON_FINGERPRINT_MISMATCH,
                f"the keys that the hub has for site {site!r} are not those of that agent: their "
                f"fingerprint is {identity.fingerprint}; the invitation is useless now",
                remedy="Find out whose keys they are, or make sure of the fingerprint; then: "
                f"`sendense agent {'rotate-key' if found.site else 'invite'} {site}`.",
                site=site,
            )
        # First what opens passwords, from these very keys: the hub is not asked about them.
        async with session.credentials() as channel:
            await CredentialServiceStub(channel).RegisterAgent(_registration(identity))
        await invitations.ApproveInvitation(
            pb.ApproveInvitationRequest(site_name=site, ssh_public_key=identity.ssh_public_key)
        )
    session.answer(
        {"site": site, "fingerprint": identity.fingerprint, "approved": True},
        f"site {site} is let in; its agent takes up its keys within seconds",
    )


async def revoke_agent(session: Session, site: str) -> None:
    """Puts an agent out; SITE_NOT_FOUND."""
    session.only_at_the_centre(NEEDS_CREDENTIALS)
    trouble = await _forget_lease_keys(session, site)
    async with session.hub() as hub:
        answer = await SiteServiceStub(hub).RevokeSite(site_service_pb2.RevokeSiteRequest(name=site))
    if trouble is not None:
        raise SendenseError(
            trouble.reason,
            f"site {site} is revoked at the hub, but its keys are left in the credentials service: "
            f"{trouble.message}",
            remedy="Revoke it again when that runs.",
            site=site,
        )
    count = len(answer.failed_job_ids)
    session.answer(answer, f"site {site} is revoked" + (f"; {count} of its jobs fail by it" if count else ""))


async def invite_agent(session: Session, site: str, hub: str, *, rotate: bool) -> None:
    """Makes an invitation and shows its line."""
    if hub and not _HOST_AND_PORT.fullmatch(hub):
        raise invalid("--hub", f"{hub!r} is not HOST:PORT", remedy="Write it as backup.example.net:8022.")
    where = hub or _listens_at(session)
    async with session.hub() as channel:
        request = pb.InviteSiteRequest(site_name=site, rotate=rotate)
        answer = await InvitationServiceStub(channel).InviteSite(request)
    _, fingerprint = parse_ssh_key("host_public_key", answer.host_public_key)
    line = (
        f"sendense-agent enroll --state {_SITE_STATE} --hub {where} --hub-fingerprint {fingerprint} "
        f"--site {site} --code {answer.code}"
    )
    until = answer.invitation.expire_time
    warning = _out_of_reach(session, hub)
    facts = {
        "site": site, "command": line, "code": answer.code, "hub": where, "hub_fingerprint": fingerprint,
        "expire_time": until.ToJsonString(), "warning": warning,
    }  # fmt: skip
    session.answer(
        facts,
        f"Paste this at the site, before {words.clock(until)}; it works once:\n\n{line}\n\n"
        "Others at that host may see the code in its command line: leave --code out, and it is asked for.\n"
        "--hub-fingerprint is that of the hub's host key: the agent compares it by itself.\n"
        f"Then compare the agent's own, which it shows at the site: sendense agent approve {site}",
    )
    if warning and not session.as_json:
        show_warning(warning, _LISTEN_FOR_OTHERS)


def _out_of_reach(session: Session, given: str) -> str:
    """Why no agent of another host gets to the hub, if none can; `given` is where it is to dial, or empty."""
    endpoint = _endpoint(session)
    near = is_loopback(given.rpartition(":")[0].strip("[]"))  # then it is meant
    if near or not is_loopback(endpoint.rpartition(":")[0].strip("[]")):
        return ""
    return f"the hub listens on {endpoint}, which only this host reaches: no agent elsewhere can dial it"


def _endpoint(session: Session) -> str:
    """Where the hub of this installation listens; empty when that is not known here."""
    if not session.elsewhere:
        with contextlib.suppress(OSError):
            return session.installation.hub.endpoint_file.read_text().strip()
    return ""


def _listens_at(session: Session) -> str:
    """Where agents dial, if they all can."""
    endpoint = _endpoint(session)
    if endpoint.rpartition(":")[0] in _WILDCARDS:
        raise invalid(
            "--hub",
            f"is needed: the hub listens on {endpoint}" if endpoint else "is needed",
            remedy="Give the name or address, and the port, by which the site reaches the hub.",
        )
    return endpoint


async def _one(session: Session, site: str) -> KnownAgent:
    found = next((each for each in await agents.known(session) if each.name == site), None)
    if found is None:
        raise SendenseError(
            Reason.REASON_SITE_NOT_FOUND,
            f"there is no site {site!r}, and no invitation of it",
            remedy="`sendense agent list` has their names; `sendense agent invite SITE` lets a new one in.",
            site=site,
        )
    return found


def _waiting(found: KnownAgent) -> AgentIdentity:
    """The keys to approve; those that were approved can be once more, should that have been interrupted."""
    one = found.invitation
    if one is None or one.state not in (agents.PENDING, agents.APPROVED):
        raise SendenseError(
            Reason.REASON_INVITATION_NOT_FOUND,
            f"no agent waits to be let in as site {found.name!r}"
            + (f": {agent_view.invitation(found)}" if one is not None else ""),
            remedy="Run the line of the invitation at the site first; if it works no more, invite anew.",
            site=found.name,
        )
    return agents.identity_of(one)


async def _compared(found: KnownAgent, identity: AgentIdentity, given: str, *, as_json: bool) -> bool:
    """Whether the fingerprint at the site is that of the keys that the hub has."""
    if given:
        return given.strip() == identity.fingerprint
    if as_json or not sys.stdin.isatty():
        raise invalid("--fingerprint", "is needed where nobody can be asked")
    old = f"\nThey replace keys with {found.identity.fingerprint}." if found.identity else ""
    sys.stderr.write(
        f"Site {found.name}: an agent shows three keys with this fingerprint of all:\n\n    "
        f"{identity.fingerprint}\n{old}\n"
        "Compare it with what the agent shows at the site, not by way of the hub.\n"
    )
    while True:
        sys.stderr.write("Is it the same, every letter? yes or no (no makes the invitation useless): ")
        sys.stderr.flush()
        word = (await _line()).strip().lower()
        if word in ("yes", "no"):
            return word == "yes"


async def _line() -> str:
    """A line from the terminal; unlike `input`, Ctrl-C ends it at once."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sys.stdin)
    line = sys.stdin.readline()
    if not line:
        raise invalid("--fingerprint", "is needed where nobody answers")
    return line


def _registration(identity: AgentIdentity) -> credentials_pb.RegisterAgentRequest:
    agent = credentials_pb.Agent(
        agent_id=identity.site,
        signing_public_key=identity.keys.signing,
        sealing_public_key=identity.keys.sealing,
    )
    return credentials_pb.RegisterAgentRequest(agent=agent, replace=True)


async def _forget_lease_keys(session: Session, site: str) -> SendenseError | None:
    """The agent opens no password any more; or why that is not certain."""
    try:
        async with session.credentials() as channel:
            await CredentialServiceStub(channel).RemoveAgent(credentials_pb.RemoveAgentRequest(agent_id=site))
    except SendenseError as error:
        return None if error.reason == Reason.REASON_SITE_NOT_FOUND else error
    return None
