# SPDX-License-Identifier: Apache-2.0
"""A vCenter pinned by its certificate, called by a name that is not in it."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.contract.kit import CAPACITY, DATA, Reader
from tests.integration.lab.kit import PASSWORD, USERNAME
from tests.integration.vsphere.kit import fails, freeze, pinned, target

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources import DatastoreSource, try_the_way
from sendense_agent.vsphere import Session, VcenterTarget, find_machine, folder, open_session
from sendense_agent.vsphere.tls import recognize
from sendense_agent.worker.reading import datastore_source
from sendense_lab.client import LabClient
from sendense_lab.vcenter.certificates import make_certificates

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

NOT_TRUSTED = Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def elsewhere(shared_lab: LabClient) -> AsyncIterator[LabClient]:
    """A vCenter at 127.0.0.1 whose certificate is for another name alone."""
    directory = shared_lab.ca_file.parent / "c"
    async with LabClient.start(directory, options=["--certificate-name=vc.example.net"]) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def session(elsewhere: LabClient) -> AsyncIterator[Session]:
    async with open_session(pinned(elsewhere), USERNAME, PASSWORD) as made:
        yield made


async def test_ff24_it_is_read_by_the_name_in_its_certificate_and_verified(
    elsewhere: LabClient, session: Session, short_tmp: Path
) -> None:
    assert session.trusted.server_name == "vc.example.net"
    vm = await elsewhere.add_vm("web", [CAPACITY])
    await elsewhere.guest_write("web", vm.disks[0], 0, DATA)
    snapshot = await freeze(await find_machine(session, vm.instance_uuid, "web"))
    disk = datastore_source(session, await snapshot.source_url(snapshot.disks[0]))
    async with disk.open(capacity_bytes=CAPACITY, run_dir=short_tmp / "n", label="d") as source:
        reader = await asyncio.to_thread(Reader, source)
        assert await reader.read() == DATA
        reader.close()
    assert not list((short_tmp / "n").iterdir())


async def test_ff24_the_detour_does_not_lead_around_the_verification(
    elsewhere: LabClient, session: Session, short_tmp: Path
) -> None:
    _, other, _ = make_certificates(short_tmp, names=("vc.example.net",), addresses=())
    files = DatastoreSource(
        url=folder(session),
        cookie=session.current_cookie,
        trust_pem=other.read_text(),
        server_name="vc.example.net",
    )
    with fails(NOT_TRUSTED):
        await try_the_way(files, run_dir=short_tmp / "n", label="d")


async def test_the_way_of_the_files_is_tried_and_a_name_that_is_not_in_the_certificate_is_told(
    elsewhere: LabClient, session: Session, short_tmp: Path
) -> None:
    await try_the_way(datastore_source(session, folder(session)), run_dir=short_tmp / "n", label="d")
    files = DatastoreSource(folder(session), session.current_cookie, session.trusted.trust_pem)
    with fails(NOT_TRUSTED, "not trusted"):
        await try_the_way(files, run_dir=short_tmp / "n", label="d")
    with fails(Reason.REASON_SOURCE_READ_FAILED, "onnect"):
        gone = DatastoreSource(
            "https://127.0.0.1:1/folder", session.current_cookie, session.trusted.trust_pem
        )
        await try_the_way(gone, run_dir=short_tmp / "n", label="d")


async def test_ff24_by_its_authority_a_host_that_is_not_in_the_certificate_is_refused(
    elsewhere: LabClient,
) -> None:
    with fails(NOT_TRUSTED, "mismatch"):
        recognize(target(elsewhere))


@pytest.mark.parametrize(
    ("names", "addresses", "called"),
    [
        (("a.example.net", "b.example.net"), (), "a.example.net"),
        (("*.example.net",), (), "vcenter.example.net"),
        ((), ("192.0.2.7",), "192.0.2.7"),
        (("a.example.net",), ("127.0.0.1",), "127.0.0.1"),
    ],
)
async def test_a_pinned_server_is_called_by_its_address_or_a_name_of_its_certificate(
    short_tmp: Path, names: tuple[str, ...], addresses: tuple[str, ...], called: str
) -> None:
    _, certificate, key = make_certificates(short_tmp, names=names, addresses=addresses)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(_silent, "127.0.0.1", 0, ssl=context)
    async with server:
        der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        port = server.sockets[0].getsockname()[1]
        wanted = VcenterTarget("vc", "127.0.0.1", port, certificate_sha256=hashlib.sha256(der).digest())
        trusted = await asyncio.to_thread(recognize, wanted)
    assert trusted.server_name == called
    assert trusted.sha1_thumbprint == hashlib.sha1(der).digest().hex(":").upper()


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
