# SPDX-License-Identifier: Apache-2.0
"""What an agent must know: who it is and where its hub is. One file, agent.json, in its state directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources import DEFAULT_TRANSPORTS
from sendense_agent.domain.checkpoints import Checkpoints
from sendense_agent.domain.limits import Limits
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths
from sendense_common.tunnel import TunnelConfig

_FILE = "agent.json"
_SSH_KEY = "ssh_ed25519_key"


@dataclass(frozen=True)
class AgentConfig:
    """Nothing in it is secret."""

    agent_id: str
    """The site's name."""
    hub_host: str
    hub_port: int
    hub_host_key: str
    """One OpenSSH line; no other hub is accepted."""
    limits: Limits = field(default_factory=Limits)
    """How gently the site is treated."""

    vddk_libdir: str = ""
    """Where VMware's library was unpacked; empty: disks are read by HTTPS."""
    vddk_transports: str = DEFAULT_TRANSPORTS
    """How it reaches the disks, in order of preference, as "san:nbdssl"."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """How much work of each disk an interruption may cost."""

    def tunnel(self, paths: AgentPaths) -> TunnelConfig:
        """How to dial."""
        return TunnelConfig(
            host=self.hub_host,
            port=self.hub_port,
            agent_id=self.agent_id,
            private_key_file=ssh_key_file(paths),
            hub_host_key=self.hub_host_key,
        )

    def save(self, paths: AgentPaths) -> None:
        """Writes the file."""
        file = paths.state / _FILE
        aside = file.with_suffix(".new")
        aside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        aside.rename(file)


def ssh_key_file(paths: AgentPaths) -> Path:
    """The key that the hub knows the agent by."""
    return paths.state / _SSH_KEY


def config_before(paths: AgentPaths) -> AgentConfig:
    """The configuration that there is, or what comes before one."""
    try:
        return load_config(paths)
    except SendenseError:
        return AgentConfig("", "", 0, "")


def load_config(paths: AgentPaths) -> AgentConfig:
    """Reads the file.

    Raises:
        SendenseError: INVALID_REQUEST when the agent was not configured.
    """
    file = paths.state / _FILE
    try:
        facts = json.loads(file.read_text())
        limits = Limits(**facts.get("limits", {}))
        checkpoints = Checkpoints(**facts.get("checkpoints", {}))
        return AgentConfig(**{**facts, "limits": limits, "checkpoints": checkpoints})
    except FileNotFoundError as error:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"{file} is missing: this agent does not know its hub",
            remedy="Run the line that `sendense agent invite SITE` prints at the centre.",
        ) from error
    except (ValueError, TypeError) as error:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"{file} cannot be understood: {error}",
            remedy="Say it anew: "
            "`sendense-agent configure --state DIR --site SITE --hub HOST:PORT --hub-key LINE`.",
        ) from error
