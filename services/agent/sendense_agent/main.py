# SPDX-License-Identifier: Apache-2.0
"""`sendense-agent`: configures and runs an agent."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sendense_agent import enrol_command
from sendense_agent.config import AgentConfig, config_before, ssh_key_file
from sendense_agent.control.serve import serve
from sendense_agent.datapath.sources import DEFAULT_TRANSPORTS
from sendense_agent.domain.checkpoints import MIB, Checkpoints
from sendense_agent.domain.limits import GIB, Limits
from sendense_common.errors import SendenseError
from sendense_common.keys import ensure_agent_keys
from sendense_common.paths import AgentPaths, made_runtime_dir, private_dir, runtime_dir
from sendense_common.service import run_service
from sendense_common.tunnel import ensure_key, fingerprint

_EPILOG = """\
Every option can be given as an environment variable instead: SENDENSE_STATE, SENDENSE_RUN,
SENDENSE_VDDK_LIBDIR. SENDENSE_LOG sets the log level.

examples:
  sendense-agent enroll --state /var/lib/sendense/agent --hub backup.example.net:8022 \\
      --hub-fingerprint SHA256:... --site paris --code XXXX-XXXX-XXXX
  sendense-agent configure --state /var/lib/sendense/agent --site paris --hub backup.example.net:8022 \\
      --hub-key "ssh-ed25519 AAAA..."
  sendense-agent run --state /var/lib/sendense/agent
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="sendense-agent",
        description="The part of Sendense at a site: dials the hub, reaches the vCenter, copies disks.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the agent")
    configure = commands.add_parser(
        "configure", help="say who it is and where its hub is; prints its public keys"
    )
    enroll = commands.add_parser(
        "enroll", help="make keys and have the hub let this agent in: the line of an invitation"
    )
    enrol_command.add_options(enroll)
    for each in (run, configure, enroll):
        state, sockets = os.environ.get("SENDENSE_STATE"), os.environ.get("SENDENSE_RUN")
        each.add_argument(
            "--state",
            type=Path,
            metavar="DIR",
            default=Path(state) if state else None,
            required=not state,
            help="what is kept: keys and configuration",
        )
        each.add_argument(
            "--run",
            type=Path,
            metavar="DIR",
            default=Path(sockets) if sockets else None,
            help="sockets (default: STATE/run, or a short private directory if that path is too long)",
        )
    configure.add_argument("--site", required=True, metavar="NAME", help="name of the site")
    configure.add_argument("--hub", required=True, metavar="HOST:PORT", help="where the hub listens")
    configure.add_argument(
        "--hub-key", required=True, metavar="LINE", help="the hub's public host key, one OpenSSH line"
    )
    _add_limits(configure)
    _add_checkpoints(configure)
    _add_vddk(configure)
    return made


def _add_limits(configure: argparse.ArgumentParser) -> None:
    usual = Limits()
    group = configure.add_argument_group(
        "limits", "What is not given stays as it was; the agent reads them when it starts."
    )
    group.add_argument(
        "--reads-per-host",
        type=int,
        metavar="N",
        help=f"disks that are read at once from the VMs of one ESXi host (first: {usual.reads_per_host})",
    )
    group.add_argument(
        "--snapshots-per-datastore",
        type=int,
        metavar="N",
        help="VMs that have a snapshot of a backup on one datastore at once "
        f"(first: {usual.snapshots_per_datastore})",
    )
    group.add_argument(
        "--floor-gib",
        type=float,
        metavar="GIB",
        help="free space that must stay on a datastore: without it no snapshot is made, and one that exists "
        f"is removed (first: {usual.floor_bytes / GIB:g})",
    )
    group.add_argument(
        "--floor-percent",
        type=float,
        metavar="P",
        help=f"the same as a share of its capacity; the larger one counts (first: {usual.floor_percent:g})",
    )
    group.add_argument(
        "--max-snapshot-age",
        type=float,
        metavar="HOURS",
        help=f"a snapshot of this age is removed (first: {usual.max_snapshot_age_s / 3600:g})",
    )


def _add_checkpoints(configure: argparse.ArgumentParser) -> None:
    usual = Checkpoints()
    group = configure.add_argument_group(
        "checkpoints", "What a disk's copy loses at the most when it is interrupted; whichever comes first."
    )
    group.add_argument(
        "--checkpoint-mib",
        type=int,
        metavar="MIB",
        help=f"data since the last one (first: {usual.bytes // MIB})",
    )
    group.add_argument(
        "--checkpoint-seconds",
        type=float,
        metavar="S",
        help=f"time since the last one (first: {usual.seconds:g})",
    )


def _add_vddk(configure: argparse.ArgumentParser) -> None:
    group = configure.add_argument_group(
        "VMware's library (VDDK)", "What is not given stays as it was; without it, disks are read by HTTPS."
    )
    group.add_argument(
        "--vddk-libdir",
        metavar="DIR",
        default=os.environ.get("SENDENSE_VDDK_LIBDIR"),
        help="where it was unpacked (DIR/lib64 exists); an empty DIR: do not use it any more",
    )
    group.add_argument(
        "--vddk-transports",
        metavar="MODE:MODE",
        help=f"how it reaches the disks, in order of preference (first: {DEFAULT_TRANSPORTS})",
    )


def _vddk(options: argparse.Namespace, before: AgentConfig) -> AgentConfig:
    """The configuration, changed as was asked for; ValueError."""
    if options.vddk_libdir:
        libdir = Path(options.vddk_libdir).resolve()
        if not (libdir / "lib64").is_dir():
            raise ValueError(f"{libdir} has no lib64: unpack VMware's archive there")
        before = replace(before, vddk_libdir=str(libdir))
    elif options.vddk_libdir is not None:
        before = replace(before, vddk_libdir="")
    if options.vddk_transports is not None:
        if not re.fullmatch(r"[a-z]+(:[a-z]+)*", options.vddk_transports):
            raise ValueError(f"{options.vddk_transports!r} is not MODE:MODE, as san:nbdssl")
        before = replace(before, vddk_transports=options.vddk_transports)
    return before


def _limits(options: argparse.Namespace, before: Limits) -> Limits:
    """Changed as was asked for; ValueError."""
    asked = {
        "reads_per_host": options.reads_per_host,
        "snapshots_per_datastore": options.snapshots_per_datastore,
        "floor_bytes": None if options.floor_gib is None else int(options.floor_gib * GIB),
        "floor_percent": options.floor_percent,
        "max_snapshot_age_s": None if options.max_snapshot_age is None else options.max_snapshot_age * 3600,
    }
    return replace(before, **{name: value for name, value in asked.items() if value is not None})


def _checkpoints(options: argparse.Namespace, before: Checkpoints) -> Checkpoints:
    """Changed as was asked for; ValueError."""
    if options.checkpoint_mib is not None:
        before = replace(before, bytes=options.checkpoint_mib * MIB)
    if options.checkpoint_seconds is not None:
        before = replace(before, seconds=options.checkpoint_seconds)
    return before


def configure(options: argparse.Namespace, paths: AgentPaths) -> int:
    """Writes the configuration, makes the keys, prints their public halves."""
    try:
        host, port = enrol_command.host_and_port(options.hub)
        fingerprint(options.hub_key)  # a line that was cut is better found now
        private_dir(paths.state)
        before = config_before(paths)
        made = AgentConfig(
            options.site,
            host,
            port,
            options.hub_key,
            _limits(options, before.limits),
            before.vddk_libdir,
            before.vddk_transports,
            _checkpoints(options, before.checkpoints),
        )
        _vddk(options, made).save(paths)
        print(ensure_key(ssh_key_file(paths), options.site))  # noqa: T201
        print(ensure_agent_keys(paths.lease_keys_file).public.to_line(options.site))  # noqa: T201
    except ValueError as error:
        print(f"sendense-agent: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except SendenseError as error:
        print(f"sendense-agent: {error.message}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Configures or runs an agent; returns the exit code."""
    options = parser().parse_args(arguments)
    os.umask(0o077)  # keys and what goes with them are nobody else's
    if options.command == "configure":
        return configure(options, AgentPaths(options.state, options.run or runtime_dir(options.state)))
    with made_runtime_dir(options.state, options.run) as run:
        paths = AgentPaths(options.state, run)
        if options.command == "enroll":
            return enrol_command.run(options, paths)
        return run_service(
            "sendense-agent", lambda stopping: serve(paths, stopping), spans_socket=paths.telemetry_socket
        )


if __name__ == "__main__":
    sys.exit(main())
