# SPDX-License-Identifier: Apache-2.0
"""`sendense-agent enroll`: what a person at a site pastes, and sees."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import re
import sys

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.control.enrolling import Asked, enrol
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_INTERRUPTED = 130


def add_options(enroll: argparse.ArgumentParser) -> None:
    """Its options, but --state and --run."""
    enroll.add_argument("--hub", required=True, metavar="HOST:PORT", help="where the hub listens")
    enroll.add_argument(
        "--hub-fingerprint",
        required=True,
        metavar="SHA256:...",
        help="of the hub's host key; nothing is sent to another hub",
    )
    enroll.add_argument("--site", required=True, metavar="NAME", help="name of the site")
    enroll.add_argument(
        "--code",
        metavar="XXXX-XXXX-XXXX",
        help="of the invitation; asked for when it is not given: then it is in no command line",
    )
    enroll.add_argument(
        "--no-wait",
        action="store_true",
        help="end as soon as the hub has the keys; the same command again takes the approval",
    )


def host_and_port(text: str) -> tuple[str, int]:
    """`backup.example.net:8022` or `[::1]:8022`; ValueError."""
    host, separator, port = text.rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def run(options: argparse.Namespace, paths: AgentPaths) -> int:
    """Enrols; returns the exit code."""
    try:
        host, port = host_and_port(options.hub)
        if not _FINGERPRINT.fullmatch(options.hub_fingerprint):
            raise ValueError(f"{options.hub_fingerprint!r} is not SHA256: and 43 characters")
        code = options.code or getpass.getpass("Code of the invitation: ")
        asked = Asked(options.site, host, port, options.hub_fingerprint, code)
        approved = asyncio.run(enrol(paths, asked, _say, wait=not options.no_wait))
    except ValueError as error:
        return _failed(str(error), 2)
    except SendenseError as error:
        usage = error.reason == Reason.REASON_INVALID_REQUEST
        return _failed(f"{error.message}. {error.remedy}".strip(), 2 if usage else 1)
    except EOFError:
        return _failed("no code was given: neither with --code nor when it was asked for", 2)
    except KeyboardInterrupt:
        return _failed("interrupted; the same command goes on where it was", _INTERRUPTED)
    if approved:
        _say(
            f"Approved: this is the agent of site {options.site}.\n"
            f"Start it: sendense-agent run --state {options.state}\n"
            "If it runs already, it goes on with the new keys by itself."
        )
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _failed(why: str, code: int) -> int:
    sys.stderr.write(f"sendense-agent: {why}\n")
    return code
