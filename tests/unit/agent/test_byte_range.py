# SPDX-License-Identifier: Apache-2.0
"""Which HTTP answers are the part of a file that was asked for."""

from __future__ import annotations

from email.message import Message

import pytest

from sendense_agent.domain.byte_range import wrong_answer

pytestmark = pytest.mark.unit

ASKED = "bytes=512-1023"


def headers(**given: str) -> Message[str, str]:
    made = Message()
    for name, value in given.items():
        made[name.replace("_", "-")] = value
    return made


@pytest.mark.parametrize(
    "given",
    [
        headers(Content_Range="bytes 512-1023/4096"),
        headers(content_range="bytes 512-1023/*", content_length="512"),
        headers(CONTENT_RANGE="bytes 512-1023/4096", Content_Encoding="identity"),
    ],
)
def test_just_the_part_that_was_asked_for_is_right(given: Message[str, str]) -> None:
    assert wrong_answer(ASKED, 206, given) == ""


@pytest.mark.parametrize(
    ("status", "given", "words"),
    [
        (200, headers(Content_Length="512"), "HTTP 200 for bytes=512-1023"),
        (200, headers(Content_Range="bytes 512-1023/4096"), "HTTP 200"),
        (206, headers(Content_Type="multipart/byteranges; boundary=x"), "HTTP 206 for"),
        (206, headers(Content_Range="bytes 0-511/4096"), "Content-Range 'bytes 0-511/4096'"),
        (206, headers(Content_Range="bytes 512-1022/4096"), "Content-Range"),
        (206, headers(Content_Range="bytes 512-4095/4096"), "Content-Range"),
        (206, headers(Content_Range="bytes */4096"), "Content-Range"),
        (206, headers(Content_Range="bytes 512-1023/4096", Content_Length="511"), "511 bytes for"),
        (206, headers(Content_Range="bytes 512-1023/4096", Content_Encoding="gzip"), "encoding 'gzip'"),
        (302, headers(Location="https://elsewhere"), "HTTP 302"),
    ],
)
def test_anything_else_is_told(status: int, given: Message[str, str], words: str) -> None:
    assert words in wrong_answer(ASKED, status, given)


@pytest.mark.parametrize("asked", ["", "bytes=512-", "bytes=-512", "bytes=0-1,5-6"])
def test_only_one_closed_range_is_asked_for(asked: str) -> None:
    assert "not one range" in wrong_answer(asked, 206, headers(Content_Range="bytes 512-1023/4096"))
