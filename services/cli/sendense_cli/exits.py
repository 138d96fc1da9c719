# SPDX-License-Identifier: Apache-2.0
"""Exit codes, and how errors are shown."""

from __future__ import annotations

import enum
import json
import sys

import grpc
from rich.console import Console
from rich.text import Text

from sendense_common.errors import SendenseError


class Exit(enum.IntEnum):
    """What the command's exit code says."""

    OK = 0
    FAILED = 1
    """The job failed, the point is damaged, something broke."""
    USAGE = 2
    """The command line or a value in it is wrong."""
    NOT_FOUND = 3
    """No such VM, job, point, vCenter."""
    REFUSED = 4
    """It exists already, is busy, or is in a state that does not allow it."""
    UNAVAILABLE = 5
    """A service, site or vCenter cannot be reached."""
    INTERRUPTED = 130
    """Ctrl-C."""


_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: Exit.USAGE,
    grpc.StatusCode.NOT_FOUND: Exit.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Exit.REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: Exit.REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: Exit.REFUSED,
    grpc.StatusCode.UNAUTHENTICATED: Exit.REFUSED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exit.REFUSED,
    grpc.StatusCode.UNAVAILABLE: Exit.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNAVAILABLE,
}


def exit_code(error: SendenseError) -> Exit:
    """For an error."""
    return _BY_CODE.get(error.code, Exit.FAILED)


def show_warning(message: str, remedy: str) -> None:
    """On standard error: what will not work as things are, though the command did its part."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("warning", "bold yellow"), f": {message}"))
    console.print(Text.assemble(("what to do", "bold"), f": {remedy}"))


def show_error(error: SendenseError, *, as_json: bool) -> None:
    """On standard error: for people in two lines, for programs as one JSON object."""
    if as_json:
        facts = {
            "error": {
                "reason": error.reason_name,
                "message": error.message,
                "remedy": error.remedy,
                "metadata": error.metadata,
                "retryable": error.retryable,
            }
        }
        sys.stderr.write(json.dumps(facts) + "\n")
        return
    console = Console(stderr=True, soft_wrap=True)
    console.print(
        Text.assemble(("error", "bold red"), f": {error.message} ", (f"[{error.reason_name}]", "dim"))
    )
    if error.remedy:
        console.print(Text.assemble(("what to do", "bold"), f": {error.remedy}"))
