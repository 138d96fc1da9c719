# SPDX-License-Identifier: Apache-2.0
"""`sendense-hub`: starts a hub."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sendense_common.paths import HubPaths, made_runtime_dir
from sendense_common.rpc import only_tls_1_3
from sendense_common.service import run_service
from sendense_hub.api.listening import add_options, given_options, host_and_port, listener_of
from sendense_hub.gateway.limits import Limits
from sendense_hub.supervisor import SupervisorConfig, supervise

_DEFAULT_LISTEN = "0.0.0.0:8022"

_EPILOG = """\
Every option can be given as an environment variable instead: SENDENSE_STATE, SENDENSE_RUN, SENDENSE_LISTEN,
SENDENSE_GATEWAYS, SENDENSE_LOGINS, SENDENSE_LOGINS_PER_ADDRESS, SENDENSE_LOGIN_SECONDS,
SENDENSE_CONCURRENCY, SENDENSE_LONGEST_CHAIN, SENDENSE_CREDENTIALS_RUN,
SENDENSE_CBT_AUDIT_PERCENT, SENDENSE_CBT_AUDIT_MAX_BYTES, SENDENSE_CATALOG_COPY_HOURS, SENDENSE_API_LISTEN,
SENDENSE_API_TLS_CERTIFICATE, SENDENSE_API_TLS_KEY, SENDENSE_API_CLIENT_CA, SENDENSE_REPOSITORY
(several separated by blanks). SENDENSE_LOG sets the log level. Agents need the address of --listen and the
host key, which is made at the first start: STATE/ssh_host_ed25519_key.pub.

`sendense-hub restore-catalog --help`: after the catalog was lost.

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
    limits = Limits()
    made.add_argument(
        "--logins",
        type=_connections,
        metavar="N",
        default=env.get("SENDENSE_LOGINS") or str(limits.logins),
        help=f"connections of a gateway that have not logged in yet (default {limits.logins})",
    )
    made.add_argument(
        "--logins-per-address",
        type=_connections,
        metavar="N",
        default=env.get("SENDENSE_LOGINS_PER_ADDRESS") or str(limits.logins_per_address),
        help=f"of these, from one address (default {limits.logins_per_address})",
    )
    made.add_argument(
        "--login-seconds",
        type=_seconds,
        metavar="S",
        default=env.get("SENDENSE_LOGIN_SECONDS") or f"{limits.login_timeout_s:g}",
        help=f"how long a login may take (default {limits.login_timeout_s:g})",
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
        "--wait-hours",
        type=_hours,
        metavar="H",
        default=env.get("SENDENSE_WAIT_HOURS") or "48",
        help="how long an interrupted backup waits for its site, its vCenter or for room (default 48)",
    )
    made.add_argument(
        "--tries",
        type=_count,
        metavar="N",
        default=env.get("SENDENSE_TRIES") or "5",
        help="attempts of a backup in a row that may fail without getting further (default 5)",
    )
    made.add_argument(
        "--longest-chain",
        type=_layers,
        metavar="N",
        default=env.get("SENDENSE_LONGEST_CHAIN") or "200",
        help="layers of a disk that are built on each other, at most; then comes a full (default 200)",
    )
    made.add_argument(
        "--cbt-audit-percent",
        type=_percent,
        metavar="P",
        default=env.get("SENDENSE_CBT_AUDIT_PERCENT") or "1",
        help="share of what did not change that is read again and compared at each incremental, to find out "
        "whether changed block tracking can be trusted; 0: none (default 1)",
    )
    made.add_argument(
        "--cbt-audit-max-bytes",
        type=_byte_count,
        metavar="N",
        default=env.get("SENDENSE_CBT_AUDIT_MAX_BYTES") or str(1 << 30),
        help="of that, at most so much of each disk and backup (default 1 GiB)",
    )
    made.add_argument(
        "--catalog-copy-hours",
        type=_hours,
        metavar="H",
        default=env.get("SENDENSE_CATALOG_COPY_HOURS") or "6",
        help="how often the catalog is copied into each repository, besides after backups; 0: never "
        "(default 6)",
    )
    add_options(made)
    made.add_argument(
        "--repository",
        action="append",
        metavar="NAME=PATH",
        help="where restore points are kept; may be given several times",
    )
    return made


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


def _connections(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 600")
    return seconds


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours <= 24 * 366:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours from 0 to 8784")
    return hours


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100")
    return value


def _byte_count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


def _layers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def api_command(options: argparse.Namespace, paths: HubPaths) -> list[str]:
    """How the API is started."""
    command = [sys.executable, "-m", "sendense_hub.api", "--state", str(paths.state), "--run", str(paths.run)]
    command += ["--credentials-run", str(options.credentials_run), "--concurrency", str(options.concurrency)]
    command += ["--wait-hours", str(options.wait_hours), "--tries", str(options.tries)]
    command += ["--longest-chain", str(options.longest_chain)]
    command += ["--cbt-audit-percent", str(options.cbt_audit_percent)]
    command += ["--cbt-audit-max-bytes", str(options.cbt_audit_max_bytes)]
    command += ["--catalog-copy-hours", str(options.catalog_copy_hours)]
    command += given_options(options)
    for repository in options.repository or os.environ.get("SENDENSE_REPOSITORY", "").split():
        command += ["--repository", repository]
    return command


def _config(options: argparse.Namespace, paths: HubPaths) -> SupervisorConfig:
    host, port = options.listen
    return SupervisorConfig(
        paths=paths,
        api_command=api_command(options, paths),
        listen_host=host,
        listen_port=port,
        limits=Limits(
            logins=options.logins,
            logins_per_address=options.logins_per_address,
            login_timeout_s=options.login_seconds,
        ),
        gateway_count=options.gateways,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a hub until it is told to stop; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["restore-catalog"]:
        from sendense_hub.api import restoring  # noqa: PLC0415 - a running supervisor has no database

        return restoring.main(words[1:])
    made = parser()
    options = made.parse_args(words)
    listener = listener_of(made, options)

    with made_runtime_dir(options.state, options.run) as directory:
        config = _config(options, HubPaths(options.state, directory))

        async def run(stopping: asyncio.Event) -> None:
            if listener:
                await asyncio.to_thread(listener.check)  # before anything is started
                only_tls_1_3()
            await supervise(config, stopping)

        return run_service("sendense-hub", run)


if __name__ == "__main__":
    sys.exit(main())
