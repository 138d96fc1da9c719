# SPDX-License-Identifier: Apache-2.0
"""A unix socket at which one file of a server can be read, as far as the answers are what was asked for.

nbdkit's curl takes any answer for the bytes it wanted: when 200 comes in place of 206, it reads on from the
file's first byte and says nothing. So it asks here instead. The server is asked over TLS, each answer is
looked at before a byte of it is passed on, and the session's cookie does not leave this process.

Threads pass the bytes on: that takes half the processor time of asyncio's streams.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import logging
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.byte_range import ranges_ignored, wrong_answer
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_PIECE_BYTES = 256 * 1024
_ANSWER_WITHIN_S = 60.0
_END_WITHIN_S = 5.0
_ASK_AGAIN_S = 0.002
_RANGE = re.compile(rb"^Range: bytes=(?P<start>\d+)-(?P<last>\d+)\r\n", re.IGNORECASE)
# What a network, a server or nbdkit may do in the middle of anything.
_BROKEN = (OSError, ValueError, http.client.HTTPException)


@dataclass(frozen=True)
class Origin:
    """A file, and how to get at it."""

    url: str
    context: ssl.SSLContext
    """Verifies its server."""
    ask_cookie: Callable[[], Awaitable[str]]
    """Gives the cookie of a session that the server knows now."""
    capacity_bytes: int
    """That it must have."""


class Gate:
    """Made by `opened`."""

    def __init__(self, origin: Origin, label: str) -> None:
        self.origin = origin
        self.label = label
        self.cookie = ""
        self.closing = False
        self.failure: SendenseError | None = None
        """Why the last request had no answer; None: it had one, if only an error of the server's."""
        self._loop = asyncio.get_running_loop()
        self._renewing = threading.Lock()
        self._asking: concurrent.futures.Future[str] | None = None
        self._passing: list[_Passing] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, path: Path, origin: Origin, label: str) -> AsyncIterator[Gate]:
        """Listens at `path` until the block ends; then all connections are cut, and the socket is gone."""
        gate = cls(origin, label)
        gate.cookie = await origin.ask_cookie()
        with socket.socket(socket.AF_UNIX) as listening:
            path.unlink(missing_ok=True)
            listening.bind(str(path))
            listening.listen()
            listening.setblocking(False)
            accepting = asyncio.create_task(gate._accept(listening))
            try:
                yield gate
            finally:
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)
                path.unlink(missing_ok=True)
                await gate._close()

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            accepted, _ = await self._loop.sock_accept(listening)
            accepted.setblocking(True)
            self._passing = [each for each in self._passing if each.is_alive()]
            self._passing.append(_Passing(self, accepted))
            self._passing[-1].start()

    async def _close(self) -> None:
        self.closing = True
        if self._asking is not None:
            self._asking.cancel()
        deadline = time.monotonic() + _END_WITHIN_S
        while any(each.is_alive() for each in self._passing) and time.monotonic() < deadline:
            for each in self._passing:
                each.cut()  # again and again: it may have just connected
            await asyncio.sleep(_ASK_AGAIN_S)

    def renewed(self, refused: str) -> str:
        """Another cookie in place of one that was refused; asked for once, however many threads need it."""
        with self._renewing:
            if self.cookie == refused and not self.closing:
                began = time.monotonic()
                self._asking = asyncio.run_coroutine_threadsafe(_awaited(self.origin.ask_cookie), self._loop)
                self.cookie = self._asking.result()
                log.info("%s: the session was renewed in %.3f s", self.label, time.monotonic() - began)
            return self.cookie


class _Passing(threading.Thread):
    """Answers the requests of one connection of nbdkit's, one after another."""

    def __init__(self, gate: Gate, accepted: socket.socket) -> None:
        super().__init__(name=f"gate {gate.label}", daemon=True)
        self._gate = gate
        self._accepted = accepted
        self._url = urllib.parse.urlsplit(gate.origin.url)
        self._secure: ssl.SSLSocket | None = None
        self._server: http.client.HTTPSConnection | None = None
        self._piece = memoryview(bytearray(_PIECE_BYTES))

    def cut(self) -> None:
        """From another thread: it ends soon."""
        for each in (self._accepted, self._secure):
            if each is not None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(each, socket.SHUT_RDWR)  # SSLSocket's would go on in plain text

    def run(self) -> None:
        with self._accepted, self._accepted.makefile("rb") as requests:
            try:
                while (request := self._request(requests)) is not None:
                    self._answer(*request)
            except concurrent.futures.CancelledError:
                pass  # the end of the gate
            except _BROKEN as error:
                log.info("%s: %r", self._gate.label, error)
            finally:
                self._leave()

    def _request(self, requests: BufferedReader) -> tuple[str, int, int] | None:
        """(method, first byte, length) of the next one; None: there is no more."""
        method, start, length = requests.readline().partition(b" ")[0].decode(), 0, 0
        while (line := requests.readline()) not in {b"\r\n", b""}:
            if found := _RANGE.match(line):
                start = int(found["start"])
                # nbdkit asks for one byte more than it wants.
                end = min(int(found["last"]) + 1, self._gate.origin.capacity_bytes)
                length = end - start
        return (method, start, length) if method and line else None

    def _answer(self, method: str, start: int, length: int) -> None:
        asked = f"bytes={start}-{start + length - 1}" if method == "GET" else ""
        try:
            answer = self._ask(method, asked)
            if (
                answer.status < 400
                and asked
                and (wrong := wrong_answer(asked, answer.status, answer.headers))
            ):
                raise ranges_ignored(self._gate.label, wrong)
            if answer.status < 400 and not asked and answer.status != 200:
                raise self._unreadable(f"answers HTTP {answer.status}")
        except SendenseError as error:
            self._leave()
            self._fail(error)
            self._say(502, "0")
            return
        self._gate.failure = None
        if answer.status >= 400:
            self._leave()  # what it says about it is not read
            self._say(answer.status, "0")
        elif asked:
            self._say(206, str(length))
            self._pass(answer, length)
        else:
            answer.read()
            self._say(200, answer.headers["Content-Length"])

    def _ask(self, method: str, asked: str) -> http.client.HTTPResponse:
        """The server's answer; its session is renewed if it has ended."""
        cookie = self._gate.cookie
        answer = self._ask_once(method, asked, cookie)
        if answer.status != 401:
            return answer
        self._leave()
        return self._ask_once(method, asked, self._gate.renewed(cookie))

    def _ask_once(self, method: str, asked: str, cookie: str) -> http.client.HTTPResponse:
        """Raises VCENTER_CERTIFICATE_NOT_TRUSTED, SOURCE_READ_FAILED."""
        headers = {"Cookie": cookie, **({"Range": asked} if asked else {})}
        used_before = self._server is not None
        try:
            return self._exchange(method, headers)
        except ssl.SSLCertVerificationError as error:
            raise SendenseError(
                Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED,
                f"{self._gate.label}: the server of the datastore's files is not trusted: "
                f"{error.verify_message}",
                remedy="The host name must be one that the certificate is for: add the vCenter by that name.",
            ) from error
        except _BROKEN as error:
            self._leave()
            if used_before:  # servers end connections that are silent
                return self._ask_once(method, asked, cookie)
            raise self._unreadable(f"does not answer: {str(error) or type(error).__name__}") from error

    def _exchange(self, method: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        host, port = self._url.hostname or "", self._url.port or 443
        if self._server is None:
            plain = socket.create_connection((host, port), timeout=_ANSWER_WITHIN_S)
            context = self._gate.origin.context
            self._secure = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
            self._secure.do_handshake()
            self._server = http.client.HTTPSConnection(host, port, context=context)
            self._server.auto_open = 0
            self._server.sock = self._secure
        self._server.request(method, f"{self._url.path}?{self._url.query}", headers=headers)
        return self._server.getresponse()

    def _leave(self) -> None:
        """The connection to the server."""
        if self._server is not None:
            self._server.close()
        if self._secure is not None:
            self._secure.close()
        self._server = self._secure = None

    def _pass(self, answer: http.client.HTTPResponse, length: int) -> None:
        try:
            while length:
                got = answer.readinto(self._piece[: min(length, _PIECE_BYTES)])
                if not got:
                    raise EOFError
                length -= got
                self._accepted.sendall(self._piece[:got])
            if answer.read(1) or answer.will_close:
                self._leave()
        except (*_BROKEN, EOFError) as error:
            self._fail(self._unreadable("breaks off in the middle of an answer"))
            raise ConnectionAbortedError("half an answer") from error

    def _say(self, status: int, length: str | None) -> None:
        """The head of an answer."""
        told = f"Content-Length: {length}\r\n" if length else ""
        self._accepted.sendall(f"HTTP/1.1 {status} -\r\nAccept-Ranges: bytes\r\n{told}\r\n".encode())

    def _unreadable(self, what: str) -> SendenseError:
        return SendenseError(
            Reason.REASON_SOURCE_READ_FAILED,
            f"{self._gate.label}: the server of the datastore's files, {self._url.netloc}, {what}",
            remedy="Look at the vCenter's log and at the network between it and the agent.",
        )

    def _fail(self, error: SendenseError) -> None:
        if not self._gate.closing:
            self._gate.failure = error
            log.warning("%s", error)


async def _awaited(ask: Callable[[], Awaitable[str]]) -> str:
    return await ask()
