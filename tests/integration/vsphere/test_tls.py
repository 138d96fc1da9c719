# SPDX-License-Identifier: Apache-2.0
"""A vCenter is recognized by its authority or by its very certificate, and refused otherwise."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.lab.kit import PASSWORD, USERNAME
from tests.integration.vsphere.kit import fails, fingerprint, opened, pinned, target

from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import VcenterTarget, open_session, tls
from sendense_agent.vsphere.tls import recognize
from sendense_lab.client import LabClient
from sendense_lab.vcenter.certificates import make_certificates

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

NOT_TRUSTED = Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED
UNREACHABLE = Reason.REASON_VCENTER_UNREACHABLE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expired(shared_lab: LabClient) -> AsyncIterator[LabClient]:
    async with LabClient.start(shared_lab.ca_file.parent / "e", options=["--expired"]) as running:
        yield running


async def test_ff24_its_authority_makes_it_trusted(lab: LabClient) -> None:
    for host in ("127.0.0.1", "localhost"):
        trusted = recognize(target(lab, host=host))
        assert trusted.certificate_sha256 == fingerprint(lab)
        assert trusted.context.verify_mode == ssl.CERT_REQUIRED
        assert trusted.context.check_hostname


async def test_ff24_its_pinned_certificate_makes_it_trusted(lab: LabClient) -> None:
    trusted = recognize(pinned(lab))
    assert trusted.certificate_sha256 == fingerprint(lab)
    assert trusted.context.verify_mode == ssl.CERT_REQUIRED
    async with open_session(pinned(lab), USERNAME, PASSWORD) as session:
        assert session.vcenter_uuid


async def test_ff24_a_pinned_certificate_holds_for_any_name(lab: LabClient) -> None:
    async with LabClient.start(lab.ca_file.parent / "n", options=["--listen=127.0.0.2:0"]) as other:
        with fails(NOT_TRUSTED, "it is not for 127.0.0.2"):
            recognize(target(other))
        assert recognize(pinned(other)).certificate_sha256 == fingerprint(other)


async def test_ff24_another_authority_is_not_trusted(lab: LabClient, tmp_path: Path) -> None:
    authority, _, _ = make_certificates(tmp_path)
    with fails(NOT_TRUSTED, "none of the given authorities has signed it") as caught:
        recognize(target(lab, ca_pem=authority.read_text()))
    assert caught.value.metadata["vcenter"] == "lab"
    assert not caught.value.retryable


async def test_ff24_a_changed_certificate_is_not_trusted_and_both_are_shown(lab: LabClient) -> None:
    old = bytes(range(32))
    with fails(NOT_TRUSTED) as caught:
        recognize(target(lab, ca_pem="", certificate_sha256=old))
    assert old.hex(":").upper() in caught.value.message
    assert fingerprint(lab).hex(":").upper() in caught.value.message
    assert "--thumbprint" in caught.value.remedy


async def test_ff24_no_trust_at_all_is_no_trust(lab: LabClient) -> None:
    with fails(NOT_TRUSTED):
        recognize(target(lab, ca_pem="", certificate_sha256=b""))


async def test_ff24_an_expired_certificate_is_not_trusted_even_when_pinned(expired: LabClient) -> None:
    for each in (target(expired), pinned(expired)):
        with fails(NOT_TRUSTED, "it has expired"):
            recognize(each)


@pytest.mark.parametrize(
    ("kind", "cause", "words", "seen"),
    [
        (
            "expired",
            "expired",
            "it has expired",
            "UTC, for localhost, vcenter.lab.example, 127.0.0.1, signed",
        ),
        ("not_yet_valid", "not_yet_valid", "it is not valid yet, by this site's clock", "valid from 20"),
        ("other_host", "wrong_host", "it is not for 127.0.0.1", "for elsewhere.lab.example, signed by"),
        ("other_ca", "wrong_authority", "none of the given authorities", "signed by CN=Sendense lab CA"),
    ],
)
async def test_each_thing_that_is_wrong_with_a_certificate_has_its_own_words_and_what_was_seen(
    lab: LabClient, kind: str, cause: str, words: str, seen: str
) -> None:
    await lab.command("set_certificate", kind=kind)
    try:
        shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((lab.host, lab.port)))
        with fails(NOT_TRUSTED, words) as caught:
            recognize(target(lab))
        error = caught.value
        assert error.metadata["cause"] == cause
        assert seen in error.message
        assert hashlib.sha256(shown).digest().hex(":").upper() in error.message
        assert error.metadata["seen_sha256"] in error.message
        assert error.remedy.startswith(("Run ", "Renew ", "Check ", "Compare "))
    finally:
        await lab.command("set_certificate", kind="good")
    assert recognize(target(lab))


async def test_a_renewed_certificate_is_trusted_by_its_authority_and_not_by_its_old_thumbprint(
    lab: LabClient,
) -> None:
    before = pinned(lab)
    await lab.command("set_certificate", kind="renewed")
    try:
        renewed = recognize(target(lab))
        with fails(NOT_TRUSTED, "another one than the one that is pinned") as caught:
            recognize(before)
        assert caught.value.metadata["cause"] == "changed"
        assert renewed.certificate_sha256.hex(":").upper() == caught.value.metadata["seen_sha256"]
        assert "vcenter change lab" in caught.value.remedy
    finally:
        await lab.command("set_certificate", kind="good")


async def test_a_lab_that_starts_again_shows_the_same_certificate(lab: LabClient, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in make_certificates(tmp_path)]
    assert [path.read_bytes() for path in make_certificates(tmp_path)] == first
    authority, server, _ = make_certificates(tmp_path, names=("other",))
    assert authority.read_bytes() == first[0]
    assert server.read_bytes() != first[1]


async def test_no_password_is_sent_to_who_is_not_trusted(lab: LabClient) -> None:
    before = (await lab.counters()).get("logins", 0)
    with fails(NOT_TRUSTED):
        async with opened(lab, ca_pem="", certificate_sha256=bytes(32)):
            pass
    assert (await lab.counters()).get("logins", 0) == before


@pytest.mark.parametrize(
    "pem", ["nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ä"]
)
async def test_an_authority_that_is_none_is_an_invalid_request(lab: LabClient, pem: str) -> None:
    with fails(Reason.REASON_INVALID_REQUEST, "no certificate of an authority"):
        recognize(target(lab, ca_pem=pem))


async def test_nobody_at_the_port_is_unreachable(lab: LabClient) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with fails(UNREACHABLE, f"at 127.0.0.1:{port}: nothing listens there .*refused") as caught:
            recognize(target(lab, port=port))
    assert caught.value.retryable
    assert caught.value.metadata["cause"] == "refused"


@pytest.fixture
def silent() -> Iterator[int]:
    """Port of somebody who takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


async def test_somebody_silent_is_unreachable_in_time(
    lab: LabClient, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_CONNECT_TIMEOUT_S", 0.1)
    for each in (target(lab, port=silent), pinned(lab, port=silent)):
        with fails(UNREACHABLE, "there is no answer in time") as caught:
            recognize(each)
        assert caught.value.metadata["cause"] == "timeout"


@pytest.mark.parametrize("host", ["", "a" * 70 + ".invalid"])
async def test_a_name_that_is_none_is_unreachable(lab: LabClient, host: str) -> None:
    with fails(UNREACHABLE, "the site knows no host") as caught:
        recognize(target(lab, host=host or "\udcff"))
    assert caught.value.metadata["cause"] == "name_unknown"


async def test_somebody_who_speaks_no_tls_is_told_apart(lab: LabClient) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.net ESMTP\r\n")
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with fails(UNREACHABLE, "what answers there speaks no TLS") as caught:
            await asyncio.to_thread(recognize, target(lab, port=port))
    assert caught.value.metadata["cause"] == "no_tls"


@pytest.mark.parametrize(
    ("access", "field"),
    [
        (VcenterAccess(name="x", port=443, ca_pem="x"), "vcenter"),
        (VcenterAccess(name="x", host="h", port=0, ca_pem="x"), "vcenter"),
        (VcenterAccess(name="x", host="h", port=65536, ca_pem="x"), "vcenter"),
        (VcenterAccess(name="x", host="h", port=443), "vcenter.trust"),
    ],
)
async def test_a_request_without_host_port_or_trust_is_invalid(access: VcenterAccess, field: str) -> None:
    with fails(Reason.REASON_INVALID_REQUEST) as caught:
        VcenterTarget.of(access)
    assert caught.value.metadata["field"] == field


async def test_a_request_says_all_that_is_needed() -> None:
    access = VcenterAccess(name="x", host="h", port=443, certificate_sha256=b"d" * 32)
    assert VcenterTarget.of(access) == VcenterTarget("x", "h", 443, certificate_sha256=b"d" * 32)
