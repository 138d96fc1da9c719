# SPDX-License-Identifier: Apache-2.0
"""The process: its start, its files, its sockets, and what it never writes anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.integration.credentials.kit import (
    ENDPOINT,
    PASSWORD,
    Service,
    failure_of,
    running,
    sendense_credentials,
)

import sendense.credentials.v1.credential_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_credentials.catalog import open_catalog
from sendense_credentials.catalog.tables import metadata

pytestmark = pytest.mark.integration

GRPCURL = str(Path(sys.executable).with_name("grpcurl"))


def test_ff20_without_a_key_the_service_does_not_start(short_tmp: Path):
    state = short_tmp / "state"
    refused = sendense_credentials("--state", str(state), "--run", str(short_tmp / "run"))
    assert refused.returncode == 1
    assert f"there is no key-encryption key: {state}/kek.json does not exist" in refused.stderr
    assert "sendense-credentials init-key" in refused.stderr
    assert not (state / "credentials.sqlite").exists()


def test_a_key_that_others_may_read_is_refused(short_tmp: Path):
    state = short_tmp / "state"
    assert sendense_credentials("init-key", "--state", str(state)).returncode == 0
    (state / "kek.json").chmod(0o644)
    refused = sendense_credentials("--state", str(state), "--run", str(short_tmp / "run"))
    assert refused.returncode == 1
    assert f"chmod 600 {state}/kek.json" in refused.stderr


def test_a_key_is_made_only_where_nothing_needs_the_old_one(short_tmp: Path):
    state, key = short_tmp / "state", short_tmp / "elsewhere" / "key.json"
    command = ["init-key", "--state", str(state), "--key-file", str(key)]
    assert sendense_credentials(*command).returncode == 0
    made = key.read_bytes()
    assert sendense_credentials(*command).returncode == 0
    assert key.read_bytes() == made
    assert not (state / "kek.json").exists()

    (state / "credentials.sqlite").touch()
    key.unlink()
    refused = sendense_credentials(*command)
    assert refused.returncode == 1
    assert "Restore the key from its backup" in refused.stderr
    assert not key.exists()
    assert sendense_credentials(*command, "--after-loss").returncode == 0
    assert key.exists()


def test_secrets_agents_and_leases_outlive_a_restart_and_nothing_is_left_open(short_tmp: Path):
    async def before(service: Service) -> tuple[str, str]:
        await service.register()
        stored = await service.store()
        used, unused = await service.issue(stored.credential_id), await service.issue(stored.credential_id)
        assert (await service.redeem(used)).password == PASSWORD
        return used, unused

    async def after(service: Service, used: str, unused: str) -> None:
        assert (await failure_of(service.redeem(used))).message.endswith("was used already")
        assert (await service.redeem(unused)).password == PASSWORD

    with running(short_tmp) as first:
        leases = asyncio.run(before(first))
        for file in filter(Path.is_file, first.paths.state.rglob("*")):
            assert file.name == "credentials.lock" or stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert stat.S_IMODE(first.paths.state.stat().st_mode) == 0o700
        assert stat.S_IMODE(first.paths.operator_socket.parent.stat().st_mode) == 0o700
        for socket in first.paths.run.rglob("*.sock"):
            assert stat.S_IMODE(socket.stat().st_mode) == 0o600, socket
        second = sendense_credentials("--state", str(first.paths.state), "--run", str(first.paths.run))
        assert second.returncode == 1
        assert "another credentials service uses the state directory" in second.stderr
    assert first.process.returncode == 0
    assert [each for each in first.paths.run.rglob("*") if not each.is_dir()] == []
    with running(short_tmp) as again:
        again.agent, again.issued = first.agent, first.issued
        asyncio.run(after(again, *leases))


def test_a_killed_service_forgets_no_redemption(short_tmp: Path):
    async def use(service: Service) -> str:
        await service.register()
        lease = await service.issue((await service.store()).credential_id)
        await service.redeem(lease)
        return lease

    with running(short_tmp) as first:
        lease = asyncio.run(use(first))
        first.process.kill()
        first.process.wait(10)
    with running(short_tmp) as again:
        again.agent = first.agent
        again.issued = first.issued
        error = asyncio.run(failure_of(again.redeem(lease)))
        assert error.reason == Reason.REASON_LEASE_USED


def test_ff20_ff21_a_database_without_its_key_is_useless(short_tmp: Path):
    async def fill(service: Service) -> str:
        await service.register()
        return (await service.store("vc")).credential_id

    with running(short_tmp) as owner:
        credential_id = asyncio.run(fill(owner))
    assert PASSWORD.encode() not in b"".join(
        file.read_bytes() for file in owner.paths.state.iterdir() if file.is_file()
    )
    thief = short_tmp / "thief"
    (thief / "state").mkdir(parents=True)
    shutil.copy(owner.paths.database_file, thief / "state")
    assert sendense_credentials("init-key", "--state", str(thief / "state"), "--after-loss").returncode == 0
    # The thief's key under the owner's key ID: the name alone opens nothing.
    key_id = json.loads(owner.paths.key_file.read_text())["active"]
    kek = json.loads((thief / "state" / "kek.json").read_text())
    (key,) = kek["keys"].values()
    kek.update(active=key_id, keys={key_id: key})
    (thief / "state" / "kek.json").write_text(json.dumps(kek))

    async def steal(service: Service) -> None:
        lease = await service.issue(credential_id)
        error = await failure_of(service.redeem(lease))
        assert error.reason == Reason.REASON_CREDENTIAL_UNREADABLE
        rotation = pb.RotateCredentialRequest(
            credential_id=credential_id,
            secret=pb.Secret(username="u", password="given anew", endpoint=ENDPOINT),
        )
        async with service.operator() as stub:
            await stub.RotateCredential(rotation)
        assert (await service.redeem(await service.issue(credential_id))).password == "given anew"

    with running(thief) as stolen:
        stolen.agent = owner.agent
        assert f"credential {credential_id} 'vc': CREDENTIAL_UNREADABLE" in stolen.log.read_text()
        asyncio.run(steal(stolen))


def test_a_damaged_database_is_named(short_tmp: Path):
    state = short_tmp / "state"
    assert sendense_credentials("init-key", "--state", str(state)).returncode == 0
    (state / "credentials.sqlite").write_bytes(b"not a database" * 1000)
    refused = sendense_credentials("--state", str(state), "--run", str(short_tmp / "run"))
    assert refused.returncode == 1
    assert f"the database {state}/credentials.sqlite cannot be used: file is not a database" in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_a_database_of_a_newer_version_is_refused_untouched(tmp_path: Path):
    file = tmp_path / "credentials.sqlite"
    async with open_catalog(file):
        pass
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SendenseError, match="9999") as refused:
        async with open_catalog(file):
            pass
    assert "newer version" in refused.value.remedy


async def test_migrations_lead_to_the_tables_that_the_code_uses(tmp_path: Path):
    async with open_catalog(tmp_path / "c.sqlite") as catalog:
        differences = await catalog.run(
            lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
        )
    assert differences == []


class Spans(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as the hub does."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    async def Export(self, request, context):
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, Span]:
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@contextlib.asynccontextmanager
async def span_intake(socket: Path) -> AsyncIterator[Spans]:
    intake = Spans()
    service = rpc.Service(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
        intake,
    )
    async with rpc.serve(socket, [service], stop_grace_s=0):
        yield intake


async def test_ff22_secrets_are_in_no_log_span_error_or_command_line(short_tmp: Path):
    """With the log at DEBUG, through use, refusal, and a defect in the middle."""
    odd = "pass-word-that-is-nowhere"
    async with span_intake(short_tmp / "spans.sock") as intake:
        stack = contextlib.ExitStack()
        enter = stack.enter_context
        service = await asyncio.to_thread(
            lambda: enter(running(short_tmp, telemetry_socket=short_tmp / "spans.sock"))
        )
        try:
            await service.register()
            stored = await service.store("vc", password=odd)
            lease = await service.issue(stored.credential_id)
            assert (await service.redeem(lease)).password == odd
            await failure_of(service.redeem(lease))
            await failure_of(service.store("vc", password=odd))
            await failure_of(service.store("vc", password=odd * 100))
            with service.database() as database:
                database.execute("DROP TABLE leases")
                database.execute("ALTER TABLE credentials RENAME TO gone")
            defect = await failure_of(service.store("vc-2", password=odd))
            assert defect.reason == Reason.REASON_INTERNAL
            assert odd not in repr(defect.__dict__)
            command_line = Path(f"/proc/{service.process.pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{service.process.pid}/environ").read_bytes()
        finally:
            await asyncio.to_thread(stack.close)
    log = service.log.read_text()
    assert "defect in /sendense.credentials.v1.CredentialService/StoreCredential" in log
    assert (
        f"lease {lease} redeemed by agent site-a: credential {stored.credential_id} version 1, BACKUP" in log
    )
    spans = intake.spans()
    redeemed = spans["/sendense.credentials.v1.RedemptionService/RedeemLease"]
    assert spans["open credential"].trace_id
    assert redeemed.kind == Span.SPAN_KIND_SERVER
    written = [log, str(intake.requests), repr(command_line), repr(environment)]
    assert not any(odd in text for text in written)
    (key,) = json.loads(service.paths.key_file.read_text())["keys"].values()
    assert not any(key in text for text in written)


def grpcurl(socket: Path, *words: str, data: str = "") -> str:
    done = subprocess.run(
        [GRPCURL, "-plaintext", "-unix", *(["-d", data] if data else []), str(socket), *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr


def test_ff07_each_socket_shows_a_person_its_own_service_and_no_other(service: Service):
    paths = service.paths
    for socket, *names in (
        (paths.operator_socket, "common.v1.AuditLog", "credentials.v1.Credential", "credentials.v1.Key"),
        (paths.hub_socket, "common.v1.AuditLog", "credentials.v1.Lease"),
        (paths.agents_socket, "credentials.v1.Redemption"),
    ):
        assert grpcurl(socket, "list").split() == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            *(f"sendense.{name}Service" for name in names),
        ]
        assert '"SERVING"' in grpcurl(socket, "grpc.health.v1.Health/Check")
    described = grpcurl(paths.agents_socket, "describe", "sendense.credentials.v1.RedeemLeaseRequest")
    assert "bytes signature = 6" in described


@pytest.mark.parametrize("socket", ["hub_socket", "agents_socket"])
async def test_what_operators_may_others_may_not(service: Service, socket: str):
    from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub

    async with rpc.connect(getattr(service.paths, socket)) as channel:
        error = await failure_of(CredentialServiceStub(channel).ListCredentials(pb.ListCredentialsRequest()))
    assert error.metadata["grpc_code"] == "UNIMPLEMENTED"


def test_malformed_calls_by_hand_get_clear_answers(service: Service):
    call = "sendense.credentials.v1.LeaseService/IssueLease"
    answer = grpcurl(service.paths.hub_socket, call, data='{"credential_id": "x"}')
    assert "InvalidArgument" in answer
    assert "credential_id: must be a UUID" in answer
    assert '"reason":"INVALID_REQUEST"' in answer.replace(" ", "")
