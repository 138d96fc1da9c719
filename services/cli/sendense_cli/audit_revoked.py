# SPDX-License-Identifier: Apache-2.0
"""Whether an agent whose log cannot be read was revoked: what the credentials service says, not the hub.

An operator who revokes an agent has the credentials service forget it, at a socket that the hub does not
reach. A hub that was taken over could otherwise hide any log by saying that it is a revoked agent's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import audit_logs
from sendense_cli.session import Session
from sendense_common.errors import SendenseError


@dataclass(frozen=True)
class KnownAgents:
    """The agents that the credentials service knows."""

    names: frozenset[str] = frozenset()
    trouble: str = ""
    """Why it could not be asked; then `names` is empty."""

    @classmethod
    async def asked(cls, session: Session) -> KnownAgents:
        """As it says now."""
        try:
            return cls(names=frozenset(await audit_logs.known_agents(session)))
        except SendenseError as error:
            return cls(trouble=error.message)

    def logs(self) -> list[str]:
        """Of them all."""
        return [f"{audit_logs.AGENT}{name}" for name in sorted(self.names)]

    def judge(self, log: str, error: SendenseError, noted: Collection[str] = ()) -> tuple[bool, str]:
        """Whether a log that ended with `error` is a revoked agent's, and what is to be said of it.

        Args:
            log: its name.
            error: what reading it ended with.
            noted: logs of which somebody has given a head: those have to be read.
        """
        if error.reason != Reason.REASON_SITE_REVOKED or not log.startswith(audit_logs.AGENT):
            return False, error.message
        doubt = ""
        if log in noted:
            doubt = "a head of it is given, so it has to be read"
        elif self.trouble:
            doubt = f"that it was revoked is the hub's word alone: {self.trouble}"
        elif log.removeprefix(audit_logs.AGENT) in self.names:
            doubt = "that it was revoked is not so: the credentials service knows its agent"
        return not doubt, f"{error.message}; {doubt}" if doubt else error.message
