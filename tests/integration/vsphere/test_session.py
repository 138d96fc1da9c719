# SPDX-License-Identifier: Apache-2.0
"""One login for each operation, whatever happens to the session and to the connections."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import http.server
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Iterator

import pytest
from pyVmomi import vim
from tests.integration.lab.kit import PASSWORD, USERNAME
from tests.integration.vsphere.kit import calls, eventually, fails, freeze, opened, target, wire

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import Session, find_machine, open_session
from sendense_agent.vsphere import session as session_module
from sendense_common.errors import SendenseError
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def logins(lab: LabClient) -> tuple[int, int]:
    """(tried, refused) so far."""
    counters = await lab.counters()
    return counters.get("logins", 0), counters.get("logins refused", 0)


async def ask(session: Session) -> object:
    return await session.properties(session.content.rootFolder, "name")


async def test_an_operation_logs_in_once_and_out_at_its_end(lab: LabClient) -> None:
    before, sessions = await logins(lab), (await lab.counters())["sessions"]
    async with opened(lab) as session:
        assert await ask(session) == {"name": "Datacenters"}
        assert await ask(session)
        assert session.vcenter_uuid == session.content.about.instanceUuid
        assert "simulated" in session.full_name
        assert (await lab.counters())["sessions"] == sessions + 1
    assert await logins(lab) == (before[0] + 1, before[1])
    assert (await lab.counters())["sessions"] == sessions


async def test_rule_24_a_refused_password_is_tried_once(lab: LabClient) -> None:
    before = await logins(lab)
    with fails(Reason.REASON_VCENTER_LOGIN_FAILED, "vim.fault.InvalidLogin") as caught:
        async with open_session(target(lab), USERNAME, "wrong"):
            pass
    assert not caught.value.retryable
    assert caught.value.metadata["fault"] == "vim.fault.InvalidLogin"
    assert "wrong" not in str(caught.value)
    assert await logins(lab) == (before[0] + 1, before[1] + 1)


async def test_a_locked_account_and_an_expired_password_are_told_from_a_wrong_one(lab: LabClient) -> None:
    locked = Reason.REASON_VCENTER_ACCOUNT_LOCKED
    await lab.command("unlock_account")
    await lab.command("set", lock_after=1, tells_locked=True, password_expired=True)
    try:
        with fails(locked, "password has expired") as expired:
            async with opened(lab):
                pass
        with fails(Reason.REASON_VCENTER_LOGIN_FAILED, "incorrect user name or password") as wrong:
            async with open_session(target(lab), USERNAME, "wrong"):
                pass
        with fails(locked, "account is locked") as caught:
            async with opened(lab):
                pass
        await lab.command("set", tells_locked=False)
        with fails(Reason.REASON_VCENTER_LOGIN_FAILED) as hidden:
            async with opened(lab):
                pass
    finally:
        await lab.command("set", lock_after=5, tells_locked=False, password_expired=False)
        await lab.command("unlock_account")
    causes = [each.value.metadata["cause"] for each in (expired, wrong, caught)]
    assert causes == ["password_expired", "wrong_password", "locked"]
    assert "may be locked" in hidden.value.remedy
    assert not any(each.value.retryable for each in (expired, wrong, caught, hidden))
    async with opened(lab) as session:
        assert session.vcenter_uuid


async def test_rule_11_a_session_that_ended_is_opened_again_and_the_call_repeated(lab: LabClient) -> None:
    async with opened(lab) as session:
        before, cookie = await logins(lab), session.cookie()
        await lab.command("expire_sessions")
        assert await ask(session) == {"name": "Datacenters"}
        assert await logins(lab) == (before[0] + 1, before[1])
        assert session.cookie() not in {"", cookie}


async def test_a_session_that_ended_is_lost_where_nothing_opens_the_password_again(lab: LabClient) -> None:
    async with open_session(target(lab), USERNAME, PASSWORD) as session:
        await lab.command("expire_sessions")
        before = await logins(lab)
        with fails(Reason.REASON_VCENTER_SESSION_LOST, "NotAuthenticated") as caught:
            await ask(session)
        assert caught.value.retryable
        assert await logins(lab) == before


class _Followed(str):
    """A password whose end can be seen."""

    __slots__ = ("__weakref__",)


async def test_nothing_holds_the_password_once_the_login_is_over(lab: LabClient) -> None:
    passwords = []

    @contextlib.asynccontextmanager
    async def opens() -> AsyncIterator[tuple[str, str]]:
        password = _Followed(PASSWORD)
        passwords.append(weakref.ref(password))
        yield USERNAME, password

    async with contextlib.AsyncExitStack() as stack:
        first = _Followed(PASSWORD)
        passwords.append(weakref.ref(first))
        opening = open_session(target(lab), USERNAME, first, again=opens)
        del first
        session = await stack.enter_async_context(opening)
        gc.collect()
        assert passwords[0]() is None
        await lab.command("expire_sessions")
        assert await ask(session) == {"name": "Datacenters"}
        gc.collect()
        assert len(passwords) == 2
        assert passwords[1]() is None


async def test_closing_does_not_wait_for_a_lease_that_does_not_come(lab: LabClient) -> None:
    waiting = asyncio.Event()

    @contextlib.asynccontextmanager
    async def never() -> AsyncIterator[tuple[str, str]]:
        waiting.set()
        await asyncio.Event().wait()
        yield "", ""

    async with asyncio.timeout(30):
        async with open_session(target(lab), USERNAME, PASSWORD, again=never) as session:
            await lab.command("expire_sessions")
            asking = asyncio.create_task(ask(session))
            await waiting.wait()
        with fails(Reason.REASON_VCENTER_SESSION_LOST):
            await asking


async def test_of_many_calls_that_find_the_session_ended_one_logs_in(lab: LabClient) -> None:
    async with opened(lab) as session:
        await lab.command("expire_sessions")
        before = await logins(lab)
        await asyncio.gather(*(ask(session) for _ in range(6)))
        assert await logins(lab) == (before[0] + 1, before[1])
    assert (await lab.counters())["sessions"] == 0


async def test_rule_24_a_password_that_was_changed_meanwhile_is_tried_once(lab: LabClient) -> None:
    """Single sign-on locks an account after five: the job's clean-up must not try again either."""
    async with opened(lab) as session:
        await lab.command("set_password", password="another")
        try:
            await lab.command("expire_sessions")
            before = await logins(lab)
            answers = await asyncio.gather(*(ask(session) for _ in range(6)), return_exceptions=True)
            with fails(Reason.REASON_VCENTER_LOGIN_FAILED):
                await ask(session)
        finally:
            await lab.command("set_password", password=PASSWORD)
        assert all(
            isinstance(each, SendenseError) and each.reason == Reason.REASON_VCENTER_LOGIN_FAILED
            for each in answers
        )
        assert await logins(lab) == (before[0] + 1, before[1] + 1)


async def test_a_session_that_ends_at_once_again_is_lost(lab: LabClient) -> None:
    async with opened(lab) as session:
        await lab.inject_fault("RetrievePropertiesEx", "vim.fault.NotAuthenticated", times=2)
        before = await logins(lab)
        with fails(Reason.REASON_VCENTER_SESSION_LOST, "NotAuthenticated") as caught:
            await ask(session)
        assert caught.value.retryable
        assert await logins(lab) == (before[0] + 1, before[1])


async def test_rule_18_the_session_is_kept_alive_by_a_timer(
    lab: LabClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_KEEP_ALIVE_S", 0.02)
    async with opened(lab) as session:
        before, tried = await calls(lab, "CurrentTime"), (await logins(lab))[0]

        async def asked() -> bool:
            return await calls(lab, "CurrentTime") >= before + 3

        await eventually(asked, "it asks again and again")
        cookie = session.cookie()
        await lab.command("expire_sessions")

        async def renewed() -> bool:
            return session.cookie() != cookie

        await eventually(renewed, "it logs in again by itself")
        assert (await logins(lab))[0] == tried + 1
        assert session.cookie()


async def test_rule_18_the_timer_survives_faults_and_ends_when_the_password_is_refused(
    lab: LabClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(lab) as session:
        monkeypatch.setattr(session_module, "_KEEP_ALIVE_S", 0.01)
        await lab.inject_fault("CurrentTime", "vmodl.fault.SystemError", times=2)
        before, refused = await calls(lab, "CurrentTime"), (await logins(lab))[1]
        keeping = asyncio.create_task(session.keep_alive())

        async def asked() -> bool:
            return await calls(lab, "CurrentTime") >= before + 4

        await eventually(asked, "it goes on after two faults")
        await lab.command("set_password", password="another")
        try:
            await lab.command("expire_sessions")
            async with asyncio.timeout(30):
                await keeping
        finally:
            await lab.command("set_password", password=PASSWORD)
        assert (await logins(lab))[1] == refused + 1


async def test_rule_18_a_connection_that_was_dropped_in_silence_fails_no_reading(
    lab: LabClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_READ_AGAIN_AFTER_S", (0.01, 0.01))
    async with wire(lab) as line, opened(lab, port=line.port) as session:
        for _ in range(3):
            line.cut()
            assert await ask(session) == {"name": "Datacenters"}
        line.refuse = 1
        line.cut()
        assert await ask(session)


async def test_a_vcenter_that_is_gone_is_unreachable(lab: LabClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_READ_AGAIN_AFTER_S", (0.01, 0.01))
    async with wire(lab) as line, opened(lab, port=line.port) as session:
        line.refuse = 1000
        line.cut()
        before = line.connections
        with fails(Reason.REASON_VCENTER_UNREACHABLE, "lab does not answer at 127.0.0.1") as caught:
            await ask(session)
        assert caught.value.retryable
        assert (
            line.connections == before + 3 - 1
        )  # the first of the three tries finds the old connection dead


async def test_what_changes_something_is_not_repeated(
    lab: LabClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_READ_AGAIN_AFTER_S", (0.01, 0.01))
    vm = await lab.add_vm("once", [65536])
    async with wire(lab) as line, opened(lab, port=line.port) as session:
        machine = await find_machine(session, vm.instance_uuid, vm.name)
        line.refuse = 1
        line.cut()
        with fails(Reason.REASON_VCENTER_UNREACHABLE):
            await freeze(machine)
        assert await lab.snapshots(vm.name) == []


async def test_a_certificate_that_changes_meanwhile_is_not_trusted(
    lab: LabClient, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_READ_AGAIN_AFTER_S", (0.01, 0.01))
    async with LabClient.start(lab.ca_file.parent / "b") as other:
        async with wire(lab) as line, opened(lab, port=line.port) as session:
            line.to_port = other.port
            line.cut()
            with fails(Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED, "self-signed|unable to get|signature"):
                for _ in range(2):  # the first may only find its connection dead
                    with contextlib.suppress(ConnectionError):
                        await ask(session)
        assert (await logins(other))[0] == 0


async def test_a_cancelled_operation_logs_out_too(lab: LabClient, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, closed, close = asyncio.Event(), asyncio.Event(), Session.close

    async def close_and_say(session: Session) -> None:
        await close(session)
        closed.set()

    monkeypatch.setattr(Session, "close", close_and_say)

    async def operation() -> None:
        async with opened(lab):
            inside.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(operation())
    await inside.wait()
    sessions = (await lab.counters())["sessions"]
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # once more, while it logs out
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
    assert (await lab.counters())["sessions"] == sessions - 1


async def test_an_operation_that_is_cancelled_while_it_logs_in_leaves_no_session(lab: LabClient) -> None:
    sessions = (await lab.counters())["sessions"]
    for pause_s in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03):

        async def operation() -> None:
            async with opened(lab):
                await asyncio.sleep(3600)

        task = asyncio.create_task(operation())
        await asyncio.sleep(pause_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await lab.counters())["sessions"] == sessions


async def test_an_expected_fault_comes_out_as_it_is_but_never_the_end_of_a_session(
    lab: LabClient, session: Session
) -> None:
    def current_time() -> object:
        return vim.ServiceInstance("ServiceInstance", session._stub).CurrentTime()

    await lab.inject_fault("CurrentTime", "vim.fault.FileFault")
    with pytest.raises(vim.fault.FileFault):
        await session.call_expecting("asking", vim.fault.VimFault, current_time)
    await lab.inject_fault("CurrentTime", "vim.fault.FileFault", message="by order")
    with fails(Reason.REASON_VSPHERE_FAULT, "asking: vCenter lab answers vim.fault.FileFault: by order"):
        await session.call("asking", current_time)
    await lab.command("expire_sessions")
    assert await session.call_expecting("asking", Exception, current_time)


@pytest.mark.parametrize("status", [200, 500, 503])
async def test_something_that_is_no_vcenter_is_said_to_be_none(lab: LabClient, status: int) -> None:
    reasons = {503: Reason.REASON_VCENTER_UNREACHABLE}
    with _web_page(lab, status) as port, fails(reasons.get(status, Reason.REASON_VSPHERE_FAULT)):
        async with opened(lab, port=port):
            pass


@contextlib.contextmanager
def _web_page(lab: LabClient, status: int) -> Iterator[int]:
    """Port of an HTTPS server with the lab's certificate, and a page of its own for everything."""

    class Page(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            page = b"<html><body>Please log in<br></body></html>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.daemon_threads = False  # its end waits for them
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(lab.server_certificate, lab.server_certificate.with_suffix(".key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
