# SPDX-License-Identifier: Apache-2.0
"""`sendense-hub`: starts a hub."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sendense_common.paths import HubPaths, runtime_dir
from sendense_common.service import run_service
from sendense_hub.supervisor import SupervisorConfig, supervise

_DEFAULT_LISTEN = "0.0.0.0:8022"

_EPILOG = """\
Every option can be given as an environment variable instead: SENDENSE_STATE, SENDENSE_RUN, SENDENSE_LISTEN,
SENDENSE_GATEWAYS, SENDENSE_CONCURRENCY, SENDENSE_CREDENTIALS_RUN, SENDENSE_REPOSITORY (several separated
by blanks). SENDENSE_LOG sets the log level. Agents need the address of --listen and the host key, which is
made at the first start: STATE/ssh_host_ed25519_key.pub.

example:
  sendense-hub --state /var/lib/sendense/hub --credentials-run /var/lib/sendense/run/cred \\
      --listen 0.0.0.0:8022 --repository default=/backup
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    env = os.environ
    made = argparse.ArgumentParser(
        prog="sendense-hub",
        description="Runs a Sendense hub: the SSH listener that agents dial, its gateways, and the API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    state = env.get("SENDENSE_STATE")
    made.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        default=Path(state) if state else None,
        required=not state,
        help="what is kept: catalog, host key, the default repository",
    )
    made.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        default=Path(env["SENDENSE_RUN"]) if env.get("SENDENSE_RUN") else None,
        help="sockets (default: STATE/run, or a short private directory if that path is too long)",
    )
    made.add_argument(
        "--listen",
        type=host_and_port,
        metavar="HOST:PORT",
        default=env.get("SENDENSE_LISTEN") or _DEFAULT_LISTEN,
        help="where agents dial; port 0 takes a free one and writes it to RUN/ssh-endpoint "
        f"(default {_DEFAULT_LISTEN})",
    )
    made.add_argument(
        "--gateways",
        type=_count,
        metavar="N",
        default=env.get("SENDENSE_GATEWAYS") or "2",
        help="processes that serve SSH (default 2)",
    )
    made.add_argument(
        "--credentials-run",
        type=Path,
        metavar="DIR",
        default=Path(env["SENDENSE_CREDENTIALS_RUN"]) if env.get("SENDENSE_CREDENTIALS_RUN") else None,
        required=not env.get("SENDENSE_CREDENTIALS_RUN"),
        help="socket directory of the credentials service",
    )
    made.add_argument(
        "--concurrency",
        type=_count,
        metavar="N",
        default=env.get("SENDENSE_CONCURRENCY") or "4",
        help="backups that run at once; more wait for their turn (default 4)",
    )
    made.add_argument(
        "--repository",
        action="append",
        metavar="NAME=PATH",
        help="where restore points are kept; may be given several times",
    )
    return made


def host_and_port(text: str) -> tuple[str, int]:
    """`0.0.0.0:8022` or `[::]:8022`."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


def api_command(options: argparse.Namespace, paths: HubPaths) -> list[str]:
    """How the API is started."""
    command = [sys.executable, "-m", "sendense_hub.api", "--state", str(paths.state), "--run", str(paths.run)]
    command += ["--credentials-run", str(options.credentials_run), "--concurrency", str(options.concurrency)]
    for repository in options.repository or os.environ.get("SENDENSE_REPOSITORY", "").split():
        command += ["--repository", repository]
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a hub until it is told to stop; returns the exit code."""
    options = parser().parse_args(arguments)
    paths = HubPaths(options.state, options.run or runtime_dir(options.state))
    host, port = options.listen
    config = SupervisorConfig(
        paths=paths,
        api_command=api_command(options, paths),
        listen_host=host,
        listen_port=port,
        gateway_count=options.gateways,
    )
    return run_service("sendense-hub", lambda stopping: supervise(config, stopping))


if __name__ == "__main__":
    sys.exit(main())
