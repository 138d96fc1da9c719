# SPDX-License-Identifier: Apache-2.0
"""A vCenter session: verified, logged in once, kept alive, logged out at the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import http.client
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyVmomi import SoapStubAdapter, vim, vmodl

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere.faults import REFUSED_LOGIN, translate
from sendense_agent.vsphere.tls import Trusted, VcenterTarget, connection_failed, recognize
from sendense_common.errors import SendenseError
from sendense_common.undisturbed import undisturbed

log = logging.getLogger(__name__)

T = TypeVar("T")
Secrets = Callable[[], contextlib.AbstractAsyncContextManager[tuple[str, str]]]
"""Opens (user, password) for one more login, which the block is: how it ends is how the login ended."""

_VERSION = "vim.version.v7_0"
_CALL_TIMEOUT_S = 120
# vCenter forgets a session that was silent for 30 minutes.
_KEEP_ALIVE_S = 300.0
# Servers and firewalls drop silent connections; a call on one that is gone would fail for nothing.
_IDLE_CONNECTION_S = 20
_READ_AGAIN_AFTER_S = (0.5, 3.0)
_LOGOUT_WITHIN_S = 10.0
_PAGE = 100

_PC = vmodl.query.PropertyCollector


class Session:
    """One login; made by `open_session`. Calls run one after another in a thread of their own."""

    def __init__(self, target: VcenterTarget, trusted: Trusted, again: Secrets | None) -> None:
        self.target = target
        self.trusted = trusted
        self.vcenter_uuid = ""
        self.full_name = ""
        self.key = ""
        """vCenter's own name of the session, for questions about its rights."""
        self.vddk = ""
        """Version of VMware's library, if disks can be read with it here."""
        self._again = again
        self._opening: asyncio.Task[None] | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vsphere")
        self._stub = SoapStubAdapter(
            host=target.host,
            port=target.port,
            path="/sdk",
            version=_VERSION,
            sslContext=trusted.context,
            httpConnectionTimeout=_CALL_TIMEOUT_S,
            connectionPoolTimeout=_IDLE_CONNECTION_S,
        )
        self.content: Any = None
        self._cookie = ""
        self._refused: Any = None

    @property
    def name(self) -> str:
        """The vCenter's, for messages."""
        return self.target.name

    def cookie(self) -> str:
        """For HTTPS to the datastores' files, as "vmware_soap_session=…"."""
        return self._cookie

    async def current_cookie(self) -> str:
        """The cookie of a session that vCenter knows now."""
        service = vim.ServiceInstance("ServiceInstance", self._stub)
        await self.call("asking whether the session is known", service.CurrentTime)
        return self._cookie

    async def now(self) -> datetime.datetime:
        """The time by vCenter's clock."""
        service = vim.ServiceInstance("ServiceInstance", self._stub)
        found: datetime.datetime = await self.read("asking for the time", service.CurrentTime)
        return found

    @contextlib.asynccontextmanager
    async def login(self) -> AsyncIterator[tuple[str, str]]:
        """(User, password), for a program that has to log in by itself, which is what the block does.

        Raises:
            SendenseError: VCENTER_SESSION_LOST when there is no way to get them again.
        """
        if self._again is None:
            raise self._lost()
        async with self._again() as secrets:
            yield secrets

    def reference(self, kind: Any, moid: str) -> Any:
        """An object by its managed object ID."""
        return kind(moid, self._stub)

    async def call(self, doing: str, function: Callable[[], T]) -> T:
        """Runs a blocking call. A session that vCenter has forgotten is opened again, and the call repeated.

        Args:
            doing: for messages, as "making a snapshot of VM web".
            function: the call.

        Raises:
            SendenseError: what the fault means; VCENTER_UNREACHABLE when the connection fails.
        """

        def repeating() -> T:
            # All in the one thread: of several calls that find the session gone, only the first logs in.
            try:
                return function()
            except vim.fault.NotAuthenticated:
                log.warning("%s: the session had ended; logging in again", self.name)
            self._log_in_again(loop)
            return function()

        loop = asyncio.get_running_loop()
        return await self._run(doing, repeating)

    async def call_expecting(self, doing: str, faults: Any, function: Callable[[], T]) -> T:
        """Like `call`, but these faults come out as they are."""
        return await self.call(doing, _expecting(faults, function))

    async def read(self, doing: str, function: Callable[[], T], *, expecting: Any = ()) -> T:
        """Like `call_expecting`, for calls that change nothing: they are repeated when a connection fails."""
        for pause_s in _READ_AGAIN_AFTER_S:
            try:
                return await self.call_expecting(doing, expecting, function)
            except SendenseError as error:
                if error.reason != Reason.REASON_VCENTER_UNREACHABLE:
                    raise
                log.warning("%s: %s: %s; asking again", self.name, doing, error)
            await asyncio.sleep(pause_s)
        return await self.call_expecting(doing, expecting, function)

    async def _run(self, doing: str, function: Callable[[], T], *, aside: bool = False) -> T:
        """Only what a caller expects comes out as it is.

        Args:
            doing: for messages.
            function: blocks.
            aside: in another thread than the session's, which waits for this.
        """
        try:
            thread = None if aside else self._thread
            return await asyncio.get_running_loop().run_in_executor(thread, function)
        except SendenseError:
            raise
        except Expected as expected:
            raise expected.fault from None
        except vmodl.MethodFault as fault:
            raise translate(fault, doing=doing, vcenter=self.name) from fault
        except (OSError, http.client.HTTPException) as error:
            raise connection_failed(self.target, error) from error
        except Exception as error:
            # pyvmomi raises whatever its parser meets, as when a proxy answers with a page of its own.
            log.exception("%s: %s", self.name, doing)
            raise SendenseError(
                Reason.REASON_VSPHERE_FAULT,
                f"{doing}: vCenter {self.name} answers something that is not vSphere's: {error!r}",
                remedy=f"Is a vCenter at {self.target.host}:{self.target.port}, and no proxy before it?",
                vcenter=self.name,
            ) from error

    async def properties(self, reference: Any, *paths: str) -> dict[str, Any]:
        """Properties of one object, by path; those without a value are missing."""
        found = await self.read(f"reading {paths[0]}", lambda: self._retrieve([reference], paths))
        return found[0][1] if found else {}

    def _retrieve(self, references: Iterable[Any], paths: Iterable[str]) -> list[tuple[Any, dict[str, Any]]]:
        references = list(references)
        spec = _PC.FilterSpec(
            objectSet=[_PC.ObjectSpec(obj=each) for each in references],
            propSet=[_PC.PropertySpec(type=type(references[0]), pathSet=list(paths))],
        )
        return list(self.pages(spec))

    def pages(self, spec: Any) -> Iterable[tuple[Any, dict[str, Any]]]:
        """(object, properties) of all that a filter selects. Blocks; runs within `read`."""
        collector = self.content.propertyCollector
        page = collector.RetrievePropertiesEx([spec], _PC.RetrieveOptions(maxObjects=_PAGE))
        while page is not None:
            for item in page.objects:
                yield item.obj, {each.name: each.val for each in item.propSet}
            page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None

    def _log_in_again(self, loop: asyncio.AbstractEventLoop) -> None:
        """Blocks, in the session's own thread: of the calls that wait behind, none logs in a second time.

        A refused password is not tried again, whoever asks: accounts get locked.
        """
        if self._refused is not None:
            raise self._refused
        if self._again is None:
            raise self._lost()
        try:
            asyncio.run_coroutine_threadsafe(self._open_again(self._again), loop).result()
        except concurrent.futures.CancelledError:
            raise self._lost() from None

    async def _open_again(self, again: Secrets) -> None:
        if self._closed:
            raise self._lost()
        self._opening = asyncio.current_task()
        async with again() as (username, password):
            doing = f"logging in again as {username!r}"
            await self._run(doing, lambda: self._login(username, password), aside=True)

    def _lost(self) -> SendenseError:
        return SendenseError(
            Reason.REASON_VCENTER_SESSION_LOST,
            f"vCenter {self.name} has ended the session (NotAuthenticated)",
            remedy="Start the operation again: it gets a new lease.",
            vcenter=self.name,
        )

    def _login(self, username: str, password: str) -> None:
        """Blocks."""
        self._stub.cookie = ""
        service = vim.ServiceInstance("ServiceInstance", self._stub)
        self.content = service.RetrieveContent()
        try:
            self.key = self.content.sessionManager.Login(username, password, None).key
        except vim.fault.InvalidLogin as fault:
            self._refused = fault
            raise
        self._cookie = (self._stub.cookie or "").split(";", maxsplit=1)[0]
        self.vcenter_uuid = self.content.about.instanceUuid
        self.full_name = self.content.about.fullName

    async def open(self, username: str, password: str) -> None:
        """Logs in; once, whatever happens. The password is not kept."""
        await self._run(f"logging in as {username!r}", lambda: self._login(username, password))

    async def keep_alive(self) -> None:
        """Asks for the time now and then, until it is cancelled."""
        while True:
            await asyncio.sleep(_KEEP_ALIVE_S)
            service = vim.ServiceInstance("ServiceInstance", self._stub)
            try:
                await self.call("keeping the session", service.CurrentTime)
            except SendenseError as error:
                log.warning("%s: keeping the session alive: %s", self.name, error)
                if error.reason in REFUSED_LOGIN:
                    return

    async def close(self) -> None:
        """Logs out, also from a login that is on its way."""

        def log_out() -> None:
            if self._cookie:
                self.content.sessionManager.Logout()

        self._closed = True
        if self._opening is not None:
            self._opening.cancel()  # else the session's thread would wait for it
        try:
            async with asyncio.timeout(_LOGOUT_WITHIN_S):
                await self._run("logging out", log_out)
        except (SendenseError, TimeoutError) as error:
            log.info("%s: logging out: %s", self.name, error)
        self._stub.DropConnections()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _expecting(faults: Any, function: Callable[[], T]) -> Callable[[], T]:
    def guarded() -> T:
        try:
            return function()
        except vim.fault.NotAuthenticated:
            raise  # whatever is expected, this one means logging in again
        except faults as fault:
            raise Expected(fault) from fault

    return guarded


class Expected(Exception):  # noqa: N818 - carries a fault past the translation
    """A fault that the caller wants to see itself."""

    def __init__(self, fault: Any) -> None:
        super().__init__()
        self.fault = fault


@contextlib.asynccontextmanager
async def open_session(
    target: VcenterTarget, username: str, password: str, *, again: Secrets | None = None
) -> AsyncIterator[Session]:
    """Verifies the vCenter, logs in once, and logs out when the block ends. The password is not kept.

    Args:
        target: the vCenter.
        username: for the first login.
        password: for the first login.
        again: opens them anew, for a session that vCenter has forgotten; None: it is lost then.

    Raises:
        SendenseError: VCENTER_UNREACHABLE, VCENTER_CERTIFICATE_NOT_TRUSTED, VCENTER_LOGIN_FAILED,
            VCENTER_ACCOUNT_LOCKED.
    """
    trusted = await asyncio.to_thread(recognize, target)
    session = Session(target, trusted, again)
    keeping: list[asyncio.Task[None]] = []
    try:
        await session.open(username, password)
        del username, password
        keeping.append(asyncio.create_task(session.keep_alive()))
        yield session
    finally:
        for task in keeping:
            task.cancel()
        await undisturbed(session.close())  # one that nobody closed lives for hours
        await undisturbed(_ended(keeping))


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
