# SPDX-License-Identifier: Apache-2.0
"""Whether an HTTP answer is the part of a file that was asked for.

A proxy may drop the header Range, and then answers with the whole file: who reads on from its first byte has
bytes from the wrong place, and no error.
"""

from __future__ import annotations

import re
from email.message import Message

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_ASKED = re.compile(r"bytes=(?P<start>\d+)-(?P<last>\d+)")
_GIVEN = re.compile(r"bytes (?P<start>\d+)-(?P<last>\d+)/(?P<size>\d+|\*)")


def wrong_answer(asked: str, status: int, headers: Message[str, str]) -> str:
    """What is wrong with an answer, in words; empty: it is the very part that was asked for.

    Args:
        asked: the header Range of the request, as "bytes=0-511".
        status: of the answer.
        headers: of the answer; finds names in any case.
    """
    wanted = _ASKED.fullmatch(asked)
    if wanted is None:
        return f"{asked!r} is not one range of bytes"
    given = _GIVEN.fullmatch(headers.get("Content-Range") or "")
    length = int(wanted["last"]) + 1 - int(wanted["start"])
    if status != 206 or given is None or (given["start"], given["last"]) != wanted.groups():
        told = f" with Content-Range {headers['Content-Range']!r}" if headers.get("Content-Range") else ""
        return f"HTTP {status}{told} for {asked}"
    if headers.get("Content-Length", str(length)) != str(length):
        return f"{headers['Content-Length']} bytes for {asked}"
    if headers.get("Content-Encoding", "identity") != "identity":
        return f"bytes in the encoding {headers['Content-Encoding']!r} for {asked}"
    return ""


def ranges_ignored(what: str, wrong: str) -> SendenseError:
    """SOURCE_IGNORES_RANGES.

    Args:
        what: was read, and where.
        wrong: from `wrong_answer`.
    """
    return SendenseError(
        Reason.REASON_SOURCE_IGNORES_RANGES,
        f"{what}: the answer is not the part of the file that was asked for: {wrong}",
        remedy="Something between the agent and the vCenter (a proxy, a load balancer) drops or changes the "
        "HTTP header Range. Let the agent reach the vCenter without it, or mend it. No wrong byte counts.",
    )
