# SPDX-License-Identifier: Apache-2.0
"""`sendense-credentials`: makes the key, and serves."""

from __future__ import annotations

import argparse
import asyncio
import grp
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sendense_common.errors import SendenseError
from sendense_common.paths import CredentialsPaths, made_runtime_dir, private_dir, runtime_dir
from sendense_common.service import configure_logging, run_service
from sendense_credentials.key_options import KeyOptions, add_arguments, key_options
from sendense_credentials.restoring import restore
from sendense_credentials.server import serve
from sendense_credentials.vault import create_key_file

_EPILOG = """\
commands:
  serve       run the service (the default)
  restore     put a backup of the database (--from) in the place of the one that is there
  init-key    make the key that encrypts everything, if there is none; back it up apart from the database

Every option can be given as an environment variable instead: SENDENSE_STATE, SENDENSE_RUN, SENDENSE_KEY_FILE,
SENDENSE_TELEMETRY_SOCKET, SENDENSE_KEY_PROVIDER, SENDENSE_TRANSIT_ADDRESS, and so on. None is a secret:
tokens are in files. SENDENSE_LOG sets the log level.

sockets in RUN, each for one audience:
  operators/operator.sock  CredentialService, for the sendense command
  hub.sock                 LeaseService, for the hub
  agents.sock              RedemptionService, for agents, through the tunnel

example:
  sendense-credentials init-key --state /var/lib/sendense/credentials
  sendense-credentials --state /var/lib/sendense/credentials --run /var/lib/sendense/run/cred
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="sendense-credentials",
        description="Keeps vCenter passwords, and opens them only to the agent that holds a lease.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "command",
        nargs="?",
        choices=["serve", "init-key", "restore"],
        default="serve",
        help="(default: serve)",
    )
    state = _path_from_environment("SENDENSE_STATE")
    made.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        default=state,
        required=state is None,
        help="what is kept: the database and, unless --key-file says otherwise, the key",
    )
    made.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        default=_path_from_environment("SENDENSE_RUN"),
        help="sockets (default: STATE/run, or a short private directory if that path is too long)",
    )
    made.add_argument(
        "--socket-group",
        metavar="NAME",
        default=os.environ.get("SENDENSE_SOCKET_GROUP") or None,
        help="its members may use hub.sock and agents.sock, and never operator.sock: for a hub that runs as "
        "another user; with --run (default: only this user may)",
    )
    made.add_argument(
        "--telemetry-socket",
        type=Path,
        metavar="F",
        default=_path_from_environment("SENDENSE_TELEMETRY_SOCKET"),
        help="where the hub takes spans (default: none)",
    )
    made.add_argument(
        "--after-loss",
        action="store_true",
        help="init-key: make a new key although there is a database; what is in it has to be rotated. "
        "restore: also a backup whose keys are lost",
    )
    made.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="F",
        help="restore: what `sendense credentials backup --output FILE` made",
    )
    add_arguments(made)
    return made


def _group(text: str | None) -> int | None:
    """Its number; ValueError."""
    if not text:
        return None
    try:
        return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError as error:
        raise ValueError(f"there is no group {text!r}") from error


def _path_from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit code."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    state = private_dir(options.state)
    paths = CredentialsPaths(state, options.run or runtime_dir(state))
    keys = key_options(command_line, options, options.key_file or paths.key_file)
    if options.command == "init-key":
        return _init_key(paths, keys, after_loss=options.after_loss)
    if options.command == "restore":
        if options.source is None:
            command_line.error("restore: name the backup with --from")
        return _restore(paths, keys, options.source, after_loss=options.after_loss)
    try:
        group = _group(options.socket_group)
    except ValueError as error:
        command_line.error(f"--socket-group: {error}")
    if group is not None and options.run is None:
        command_line.error("--socket-group: give --run too, a directory that the group can get to")
    with made_runtime_dir(state, options.run) as run:
        served = CredentialsPaths(state, run)
        return run_service(
            "sendense-credentials",
            lambda stopping: serve(served, keys, stopping, group),
            spans_socket=options.telemetry_socket,
        )


def _init_key(paths: CredentialsPaths, keys: KeyOptions, *, after_loss: bool) -> int:
    key_file = keys.key_file
    if keys.provider != "local":
        sys.stdout.write("no key file is made: the keys are in OpenBao or Vault\n")
        return 0
    if paths.database_file.exists() and not key_file.exists() and not after_loss:
        sys.stderr.write(
            f"{paths.database_file} was encrypted under a key that is not at {key_file}.\n"
            "Restore the key from its backup. If it is lost: init-key --after-loss makes a new one,\n"
            "and every credential has to be rotated, which is to give it anew.\n"
        )
        return 1
    if create_key_file(key_file):
        sys.stdout.write(f"made {key_file}: back it up, apart from the database\n")
    else:
        sys.stdout.write(f"{key_file} is there already and stays as it is\n")
    return 0


def _restore(paths: CredentialsPaths, keys: KeyOptions, source: Path, *, after_loss: bool) -> int:
    configure_logging("WARNING")
    os.umask(0o077)
    try:
        sys.stdout.write(asyncio.run(restore(paths, keys, source, after_loss=after_loss)))
    except SendenseError as error:
        sys.stderr.write(f"{error}\n{error.remedy}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
