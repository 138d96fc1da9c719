# SPDX-License-Identifier: Apache-2.0
"""The hub's API on a port with TLS: a process of its own, the real `sendense`, the real grpcurl."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from tests.integration.hub.kit import Api, api_of, world
from tests.integration.operators.kit import WITHIN_S, make_certificates, refusal, self_signed

from sendense.common.v1.reason_pb2 import Reason
from sendense.common.v1.role_pb2 import Role
from sendense.hub.v1 import operator_service_pb2 as pb
from sendense.hub.v1.operator_service_pb2_grpc import OperatorServiceStub
from sendense_common import rpc

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

BIN = Path(sys.executable).parent


@dataclass
class Hub:
    """An API with a port."""

    api: Api
    directory: Path
    port: int

    async def sendense(self, *arguments: str, ca: str = "ca.pem") -> tuple[int, str, str]:
        """From elsewhere, with the token that is in `token`."""
        where = ["--hub", f"localhost:{self.port}", "--token-file", "token", "--ca-file", ca]
        return await self.run("sendense", *where, *arguments)

    async def run(self, program: str, *arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            str(BIN / program), *arguments, cwd=self.directory, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        return process.returncode or 0, output.decode(), errors.decode()

    @property
    def operators(self) -> OperatorServiceStub:
        """On the hub's own socket."""
        return OperatorServiceStub(self.api.channel)

    def handshake(self, version: ssl.TLSVersion) -> x509.Certificate:
        """With this version alone; the certificate that the hub shows. Blocks."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN_S) as plain,
            context.wrap_socket(plain) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
        assert shown
        return x509.load_der_x509_certificate(shown)


@contextlib.asynccontextmanager
async def hub_with(*options: str) -> AsyncIterator[Hub]:
    """An API with the certificate of the page."""
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    make_certificates(directory)
    suites, verbosity = (os.environ.get(each) for each in ("GRPC_SSL_CIPHER_SUITES", "GRPC_VERBOSITY"))
    rpc.only_tls_1_3()
    try:
        more = [each.replace("DIR", str(directory)) for each in options]
        tls = [
            "--api-tls-certificate",
            str(directory / "api.pem"),
            "--api-tls-key",
            str(directory / "api.key"),
        ]
        listen = ["--api-listen", "127.0.0.1:0"]
        async with world(directory) as made, api_of(made, *listen, *tls, *more) as api:
            endpoint = made.paths.api_endpoint_file.read_text().strip()
            yield Hub(api, directory, int(endpoint.rpartition(":")[2]))
    finally:
        for name, value in (("GRPC_SSL_CIPHER_SUITES", suites), ("GRPC_VERBOSITY", verbosity)):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    shutil.rmtree(directory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[Hub]:
    async with hub_with() as made:
        request = pb.CreateTokenRequest(name="vera", role=Role.ROLE_VIEWER)
        token = (await made.operators.CreateToken(request)).token
        file = made.directory / "token"
        file.touch(0o600)
        file.write_text(token + "\n")
        yield made


async def test_only_tls_1_3_is_spoken(hub: Hub):
    shown = await asyncio.to_thread(hub.handshake, ssl.TLSVersion.TLSv1_3)
    assert shown.subject.rfc4514_string() == "CN=localhost"
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(hub.handshake, ssl.TLSVersion.TLSv1_2)


async def test_a_viewer_elsewhere_sees_jobs_and_starts_none(hub: Hub):
    code, output, errors = await hub.sendense("job", "list", "--json")
    assert (code, json.loads(output)["jobs"]) == (0, []), errors
    code, _, errors = await hub.sendense("backup", "start", "web", "--json")
    error = json.loads(errors)["error"]
    assert (code, error["reason"], error["metadata"]["needed"]) == (4, "NOT_PERMITTED", "operator")


async def test_a_hub_that_cannot_be_trusted_is_not_given_the_token(hub: Hub):
    self_signed(hub.directory, "other", days=10)
    code, _, errors = await hub.sendense("job", "list", ca="other.pem")
    assert code == 5
    assert "certificate is not trusted" in errors
    assert "--ca-file" in errors


async def test_what_needs_the_centre_says_so_and_does_nothing(hub: Hub):
    code, _, errors = await hub.sendense("vcenter", "remove", "vc")
    assert code == 2
    assert "runs at the centre" in errors


async def test_grpcurl_works_with_tls_and_a_token(hub: Hub):
    token = (hub.directory / "token").read_text().strip()
    address = f"localhost:{hub.port}"
    bearer = ["-cacert", "ca.pem", "-H", f"authorization: Bearer {token}"]
    code, output, errors = await hub.run("grpcurl", *bearer, address, "list")
    assert code == 0, errors
    assert "sendense.hub.v1.OperatorService" in output
    assert "AuthorizationService" not in output
    who = "sendense.hub.v1.OperatorService/GetCaller"
    _, output, errors = await hub.run("grpcurl", *bearer, address, who)
    assert json.loads(output) == {"actor": "token:vera", "role": "ROLE_VIEWER"}, errors
    code, _, errors = await hub.run("grpcurl", "-cacert", "ca.pem", address, "list")
    assert code != 0
    assert "no token was sent" in errors


async def test_doctor_says_who_may_come_in(hub: Hub):
    _, output, errors = await hub.sendense("doctor", "--json")
    checks = {each["name"]: each["finding"] for each in json.loads(output)["checks"]}
    assert "TLS 1.3" in checks["api.listener"], errors
    assert "valid until" in checks["api.certificate"]
    assert checks["api.operators"] == "1 viewer"


async def test_a_new_certificate_is_used_without_a_restart_and_a_bad_one_is_not(hub: Hub):
    """The last here: afterwards the hub shows a certificate of nobody's CA."""
    before = await asyncio.to_thread(hub.handshake, ssl.TLSVersion.TLSv1_3)
    for content in ("nonsense", (hub.directory / "ada.pem").read_text()):
        (hub.directory / "api.pem").write_text(content)
        assert await asyncio.to_thread(hub.handshake, ssl.TLSVersion.TLSv1_3) == before
    self_signed(hub.directory, "fresh", days=10)
    (hub.directory / "fresh.key").rename(hub.directory / "api.key")
    (hub.directory / "fresh.pem").rename(hub.directory / "api.pem")
    deadline = time.monotonic() + WITHIN_S
    while (await asyncio.to_thread(hub.handshake, ssl.TLSVersion.TLSv1_3)) == before:
        assert time.monotonic() < deadline
    log = (hub.api.world.paths.state / "api.log").read_text()
    assert "the certificate that was in use stays" in log
    assert "was read again" in log


async def test_a_client_certificate_is_its_owner_as_long_as_it_is_let_in():
    async with hub_with("--api-client-ca", "DIR/ca.pem") as hub:
        request = pb.CreateTokenRequest(name="vera", role=Role.ROLE_VIEWER)
        token = (await hub.operators.CreateToken(request)).token
        ca, certificate, key = (
            (hub.directory / each).read_bytes() for each in ("ca.pem", "ada.pem", "ada.key")
        )
        ada = rpc.Remote("localhost", hub.port, True, ca, "", certificate, key)
        async with rpc.connect_remote(ada) as channel:
            stub = OperatorServiceStub(channel)
            refused = await refusal(stub.GetCaller(pb.GetCallerRequest()))
            assert refused.reason == Reason.REASON_NOT_AUTHENTICATED
            assert "'ada'" in refused.message
            await hub.operators.AddCertificate(pb.AddCertificateRequest(name="ada", role=Role.ROLE_OPERATOR))
            who = await stub.GetCaller(pb.GetCallerRequest())
            assert (who.actor, who.role) == ("certificate:ada", Role.ROLE_OPERATOR)
            kind = pb.OPERATOR_KIND_CERTIFICATE
            await hub.operators.RevokeOperator(pb.RevokeOperatorRequest(kind=kind, name="ada"))
            refused = await refusal(stub.GetCaller(pb.GetCallerRequest()))
            assert refused.reason == Reason.REASON_NOT_AUTHENTICATED
        both = rpc.Remote("localhost", hub.port, True, ca, token, certificate, key)
        async with rpc.connect_remote(both) as channel:
            who = await OperatorServiceStub(channel).GetCaller(pb.GetCallerRequest())
            assert who.actor == "token:vera"
        self_signed(hub.directory, "mallory", days=10)
        certificate, key = ((hub.directory / f"mallory.{each}").read_bytes() for each in ("pem", "key"))
        for stranger in (
            rpc.Remote("localhost", hub.port, True, ca, token),
            rpc.Remote("localhost", hub.port, True, ca, token, certificate, key),
        ):
            async with rpc.connect_remote(stranger) as channel:
                refused = await refusal(OperatorServiceStub(channel).GetCaller(pb.GetCallerRequest()))
            assert refused.reason == Reason.REASON_SERVICE_UNAVAILABLE
