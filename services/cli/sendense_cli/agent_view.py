# SPDX-License-Identifier: Apache-2.0
"""Agents on the screen."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from sendense.hub.v1 import invitation_service_pb2 as pb
from sendense_cli import words
from sendense_cli.agents import KnownAgent
from sendense_cli.session import table


def rows(agents: Iterable[KnownAgent]) -> Table:
    """A line each."""
    made = []
    for each in agents:
        identity = each.identity if each.site is not None else each.shown
        connected = each.site is not None and each.site.connected
        made.append([
            each.name, each.state, "yes" if connected else "no",
            words.moment(each.site.create_time) if each.site else "-",
            identity.fingerprint if identity else "-", invitation(each),
        ])  # fmt: skip
    return table(["SITE", "STATE", "CONNECTED", "SINCE", "AGENT FINGERPRINT", "INVITATION"], made)


def invitation(agent: KnownAgent) -> str:
    """What became of it, in a few words; "-" for one that is done with."""
    one = agent.invitation
    if one is None or one.state == pb.INVITATION_STATE_APPROVED:
        return "-"
    clock = words.clock(one.expire_time)
    if one.state == pb.INVITATION_STATE_OPEN:
        return f"code not used yet, good until {clock}"
    if one.state == pb.INVITATION_STATE_PENDING:
        return f"{'new keys wait' if one.rotates else 'waits'} for approval until {clock}"
    return f"useless: {one.why}"


def details(agent: KnownAgent) -> str:
    """All about one."""
    site, facts = agent.site, [("site", agent.name), ("state", agent.state)]
    if site is not None:
        facts += [
            ("connected", f"yes, version {site.agent_version}" if site.connected else "no"),
            ("since", words.moment(site.create_time)),
            ("revoked", words.moment(site.revoke_time)),
            *_fingerprints(agent),
            ("SSH key", f"{site.fingerprint} (alone, as ssh-keygen -l shows it and the hub records it)"),
        ]
    facts.append(("invitation", invitation(agent)))
    if agent.shown is not None:
        what = f"compare at the site, then `sendense agent approve {agent.name}`"
        facts.append(("shown", f"{agent.shown.fingerprint} (of the new agent's three keys: {what})"))
    return "\n".join(f"{name:<12} {value}" for name, value in facts if value != "-")


def _fingerprints(agent: KnownAgent) -> list[tuple[str, str]]:
    if agent.identity is None:
        return [("agent", _unknown(agent))]
    return [
        ("agent", f"{agent.identity.fingerprint} (of its three keys together: what people compare)"),
        ("lease keys", f"{agent.identity.keys.fingerprint} (signing and sealing key: for passwords)"),
    ]


def _unknown(agent: KnownAgent) -> str:
    if agent.state == "revoked":
        return "-"
    return f"not known: the credentials service has no keys of agent {agent.name}, or does not run"
