# SPDX-License-Identifier: Apache-2.0
"""Where the API may be served, and that a hub says why it does not start."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.operators.kit import make_certificates, room, self_signed

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_hub.rpc.admission import Admission

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    self_signed(directory, "expired", days=-1)
    (directory / "open.key").write_bytes((directory / "api.key").read_bytes())
    (directory / "open.key").chmod(0o644)
    return directory


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_others_are_not_served_in_the_clear(host: str):
    with pytest.raises(SendenseError, match="in the clear") as failed:
        rpc.Listener(host, 8443).check()
    assert failed.value.reason == Reason.REASON_LISTENER_REFUSED
    assert "--api-tls-certificate" in failed.value.remedy


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_host_may_go_without_tls(host: str):
    rpc.Listener(host, 8443).check()


def test_what_is_no_address_is_told():
    with pytest.raises(SendenseError, match=r"nowhere\.invalid") as failed:
        rpc.Listener("nowhere.invalid", 1).check()
    assert failed.value.reason == Reason.REASON_LISTENER_REFUSED


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "why"),
    [
        ("none.pem", "api.key", None, "none.pem: No such file"),
        ("api.pem", "none.key", None, "none.key: No such file"),
        ("api.key", "api.key", None, "api.key: it is not PEM"),
        ("api.pem", "ada.key", None, "does not belong to its key"),
        ("api.pem", "open.key", None, "everybody may read it"),
        ("expired.pem", "expired.key", None, "it expired on"),
        ("api.pem", "api.key", "api.key", "api.key: it is not PEM"),
        ("api.pem", "api.key", "none.pem", "none.pem: No such file"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    certificates: Path, certificate: str, key: str, client_ca: str | None, why: str
):
    files = rpc.TlsFiles(
        certificates / certificate, certificates / key, certificates / client_ca if client_ca else None
    )
    with pytest.raises(SendenseError, match=re.escape(why)) as failed:
        rpc.Listener("0.0.0.0", 8443, files).check()
    assert failed.value.reason == Reason.REASON_LISTENER_REFUSED


def test_good_files_are_taken(certificates: Path):
    files = rpc.TlsFiles(certificates / "api.pem", certificates / "api.key", certificates / "ca.pem")
    rpc.Listener("0.0.0.0", 8443, files).check()


@pytest.fixture
async def admission(short_tmp: Path) -> AsyncIterator[Admission]:
    async with room(short_tmp) as made:
        yield made.admission


async def test_a_taken_port_is_told(admission: Admission):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listener = rpc.Listener("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(SendenseError, match="the port is taken"):
            async with rpc.serve_operators(listener, [], admission.identify):
                pass


async def test_a_process_that_would_talk_tls_1_2_does_not_serve(certificates: Path, admission: Admission):
    """This one was not started as the hub starts its API."""
    listener = rpc.Listener("127.0.0.1", 0, rpc.TlsFiles(certificates / "api.pem", certificates / "api.key"))
    with pytest.raises(SendenseError, match=r"it would talk TLS 1\.2"):
        async with rpc.serve_operators(listener, [], admission.identify):
            pass


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--api-listen", "0.0.0.0:8443"], 1, "LISTENER_REFUSED"),
        (["--api-listen", "8443"], 2, "HOST:PORT"),
        (["--api-listen", "127.0.0.1:0", "--api-tls-key", "k"], 2, "need each other"),
        (["--api-listen", "127.0.0.1:0", "--api-client-ca", "k"], 2, "--api-client-ca needs"),
    ],
)
def test_a_hub_does_not_start_and_says_why(tmp_path: Path, options: list[str], code: int, says: str):
    where = [f"--state={tmp_path}/hub", f"--credentials-run={tmp_path}", "--listen=127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-m", "sendense_hub.main", *where, *options],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "hub").exists(), "nothing was begun"
