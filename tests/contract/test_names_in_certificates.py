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
from sendense_agent.vsphere import Session, find_machine, folder, open_session
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


async def test_ff24_a_pinned_server_is_read_whatever_names_its_certificate_has(
    elsewhere: LabClient, session: Session, short_tmp: Path
) -> None:
    vm = await elsewhere.add_vm("web", [CAPACITY])
    await elsewhere.guest_write("web", vm.disks[0], 0, DATA)
    snapshot = await freeze(await find_machine(session, vm.instance_uuid, "web"))
    disk = datastore_source(session, await snapshot.source_url(snapshot.disks[0]))
    async with disk.open(capacity_bytes=CAPACITY, run_dir=short_tmp / "n", label="d") as source:
        reader = await asyncio.to_thread(Reader, source)
        assert await reader.read() == DATA
        reader.close()
    assert not list((short_tmp / "n").iterdir())


async def test_ff24_another_certificate_of_that_name_is_not_trusted(
    elsewhere: LabClient, session: Session, short_tmp: Path
) -> None:
    _, other, _ = make_certificates(short_tmp, names=("vc.example.net",), addresses=())
    context = ssl.create_default_context(cadata=other.read_text())
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    files = DatastoreSource(folder(session), session.current_cookie, context)
    with fails(NOT_TRUSTED, "not trusted"):
        await try_the_way(files, run_dir=short_tmp / "n", label="d")


async def test_the_way_of_the_files_is_tried_and_a_name_that_is_not_in_the_certificate_is_told(
    elsewhere: LabClient, session: Session, short_tmp: Path
) -> None:
    await try_the_way(datastore_source(session, folder(session)), run_dir=short_tmp / "n", label="d")
    by_authority = ssl.create_default_context(cafile=str(elsewhere.ca_file))
    files = DatastoreSource(folder(session), session.current_cookie, by_authority)
    with fails(NOT_TRUSTED, "not trusted: .*mismatch"):
        await try_the_way(files, run_dir=short_tmp / "n", label="d")
    with fails(Reason.REASON_SOURCE_READ_FAILED, "127.0.0.1:1, does not answer: .*refused"):
        gone = DatastoreSource("https://127.0.0.1:1/folder", session.current_cookie, session.trusted.context)
        await try_the_way(gone, run_dir=short_tmp / "n", label="d")


async def test_ff24_by_its_authority_a_host_that_is_not_in_the_certificate_is_refused(
    elsewhere: LabClient,
) -> None:
    with fails(NOT_TRUSTED, "mismatch"):
        recognize(target(elsewhere))


async def test_a_certificates_sha1_thumbprint_is_as_vmwares_library_wants_it(session: Session) -> None:
    der = session.trusted.certificate
    assert session.trusted.sha1_thumbprint == hashlib.sha1(der).digest().hex(":").upper()


async def test_a_connection_that_broke_in_its_handshake_is_not_taken_for_a_wrong_certificate(
    session: Session, short_tmp: Path
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        broken = DatastoreSource(
            f"https://127.0.0.1:{port}/folder", session.current_cookie, session.trusted.context
        )
        with fails(Reason.REASON_SOURCE_READ_FAILED, f"127.0.0.1:{port}, does not answer"):
            await try_the_way(broken, run_dir=short_tmp / "n", label="d")
