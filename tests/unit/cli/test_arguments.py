# SPDX-License-Identifier: Apache-2.0
"""What people type: addresses, thumbprints, passwords; and how errors are shown."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import vcenter_input
from sendense_cli.exits import Exit, exit_code, show_error
from sendense_common.errors import CODES, SendenseError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("vc.example.net", "vc.example.net", 443),
        ("vc.example.net:8443", "vc.example.net", 8443),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("[2001:db8::1]:8443", "2001:db8::1", 8443),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    made = vcenter_input.endpoint(text, None, "ab" * 32)
    assert (made.host, made.port) == (host, port)


@pytest.mark.parametrize("text", ["vc:", "vc:0", "vc:65536", "vc:x"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(SendenseError, match="HOST"):
        vcenter_input.endpoint(text, None, "ab" * 32)


@pytest.mark.parametrize("prefix", ["", "sha256 Fingerprint="])
def test_a_thumbprint_is_taken_as_openssl_prints_it(prefix: str) -> None:
    made = vcenter_input.endpoint("vc", None, prefix + ":".join(["AB"] * 32))
    assert made.certificate_sha256 == b"\xab" * 32


@pytest.mark.parametrize("text", ["AB:CD", "zz" * 32, "ab" * 20])
def test_a_thumbprint_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(SendenseError, match="SHA-256"):
        vcenter_input.endpoint("vc", None, text)


def test_a_vcenter_is_never_trusted_for_nothing(tmp_path: Path) -> None:
    for file, thumbprint in ((None, ""), (tmp_path / "ca.pem", "ab" * 32)):
        with pytest.raises(SendenseError, match="exactly one"):
            vcenter_input.endpoint("vc", file, thumbprint)
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(SendenseError, match="is empty"):
        vcenter_input.endpoint("vc", tmp_path / "empty", "")


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"pw", "pw"),
        (b"pw\n", "pw"),
        (b"pw\r\n", "pw"),
        (b"pw\n\n", "pw\n"),
        (b"  +pw  \n", "  +pw  "),
        ("pässwörd\n".encode(), "pässwörd"),
        (b"pw\r", "pw\r"),
    ],
)
def test_only_the_final_newline_of_a_password_is_dropped(
    tmp_path: Path, content: bytes, password: str
) -> None:
    file = tmp_path / "pw"
    file.write_bytes(content)
    assert vcenter_input.password(False, file) == password


def test_a_password_comes_from_one_place(tmp_path: Path) -> None:
    for stdin, file in ((False, None), (True, tmp_path / "pw")):
        with pytest.raises(SendenseError, match="exactly one"):
            vcenter_input.password(stdin, file)
    with pytest.raises(SendenseError, match="cannot be read"):
        vcenter_input.password(False, tmp_path / "missing")
    with pytest.raises(SendenseError, match="more than 4096 bytes"):
        vcenter_input.password(False, Path("/dev/zero"))


def test_every_reason_has_an_exit_code_other_than_0() -> None:
    for reason in CODES:
        assert exit_code(SendenseError(reason, "x")) not in {Exit.OK, Exit.INTERRUPTED}
    assert exit_code(SendenseError(Reason.REASON_VM_NOT_FOUND, "x")) == Exit.NOT_FOUND
    assert CODES[Reason.REASON_VM_NOT_FOUND] == grpc.StatusCode.NOT_FOUND


def test_errors_for_programs_are_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    error = SendenseError(Reason.REASON_VM_BUSY, "busy [x]", remedy="wait", vm="web01", retryable=True)
    show_error(error, as_json=True)
    shown = json.loads(capsys.readouterr().err)["error"]
    assert (shown["reason"], shown["message"], shown["remedy"]) == ("VM_BUSY", "busy [x]", "wait")
    assert (shown["metadata"]["vm"], shown["retryable"]) == ("web01", True)
    show_error(error, as_json=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: busy [x] [VM_BUSY]", "what to do: wait"]
