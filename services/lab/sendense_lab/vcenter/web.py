# SPDX-License-Identifier: Apache-2.0
"""HTTPS: the API at /sdk, and the files of the datastore at /folder with ranges."""

from __future__ import annotations

import http.cookies
import http.server
import logging
import os
import re
import socket
import ssl
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sendense_lab.vcenter.inventory import DATACENTER
from sendense_lab.vcenter.server import Caller, Vcenter

log = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK_BYTES = 256 * 1024
_VERSIONS = (
    '<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace><name>urn:vim25</name>'
    "<version>%s</version><priorVersions><version>7.0</version>"
    "</priorVersions></namespace></namespaces>"
)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 120
    vcenter: Vcenter

    def setup(self) -> None:
        self.request.do_handshake()
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def do_POST(self) -> None:
        body = b"".join(self._body())
        if not self.path.startswith("/sdk"):
            self._reply(404)
            return
        caller = Caller(self._session())
        status, answer = self.vcenter.call(caller, body)
        headers = {"Content-Type": "text/xml; charset=utf-8"}
        if caller.new_session:
            headers["Set-Cookie"] = f'vmware_soap_session="{caller.new_session}"; Path=/; HttpOnly; Secure;'
        self._reply(status, answer, headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/sdk/vimServiceVersions.xml":
            self._reply(200, (_VERSIONS % self.vcenter.api_version).encode(), {"Content-Type": "text/xml"})
        elif url.path.startswith("/folder/"):
            self._folder(url)
        else:
            self._reply(404)

    def _folder(self, url: urllib.parse.SplitResult) -> None:
        planned = None
        if self.command == "GET":
            time.sleep(self.vcenter.read_seconds)
            self.vcenter.events.happen("GET /folder")
            planned = self.vcenter.faults.due("GET /folder")
        if not self.vcenter.use(self._session(), calls_more=0) or (planned and planned.fault == "401"):
            self._reply(401, b"", {"WWW-Authenticate": 'Basic realm="VMware HTTP server"'})
        elif planned and planned.fault == "500":
            self._reply(500)
        elif path := self._file(url):
            self._send(path, planned.fault if planned else "")
        else:
            self._reply(404)

    def _file(self, url: urllib.parse.SplitResult) -> Path | None:
        query = dict(urllib.parse.parse_qsl(url.query))
        store = self.vcenter.datacenter.datastores.get(query.get("dsName", ""))
        if query.get("dcPath", DATACENTER).strip("/") != DATACENTER or store is None:
            return None
        files = store.files.resolve()
        path = (files / urllib.parse.unquote(url.path.removeprefix("/folder/"))).resolve()
        return path if path.is_relative_to(files) and path.is_file() else None

    def _send(self, path: Path, fault: str) -> None:
        size = path.stat().st_size
        start, end, status, drop = 0, size, 200, fault == "drop"
        wanted = "" if fault == "whole" else self.headers.get("Range", "")
        if (asked := _range(wanted, size)) is not None:
            start, end = asked
            status = 206
            if start >= end:
                self._reply(416, b"", {"Content-Range": f"bytes */{size}"})
                return
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if self.command == "GET":
            self.vcenter.count("folder requests")
            self._copy(path, start, start + (end - start) // 2 if drop else end)
        self.wfile.flush()
        if drop:
            self.close_connection = True

    def _copy(self, path: Path, start: int, end: int) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while start < end and (data := os.pread(descriptor, min(_CHUNK_BYTES, end - start), start)):
                self.wfile.write(data)
                self.vcenter.count("folder bytes", len(data))
                start += len(data)
        finally:
            os.close(descriptor)

    def _session(self) -> str:
        cookies = http.cookies.SimpleCookie(self.headers.get("Cookie") or "")
        found = cookies.get("vmware_soap_session")
        return found.value.strip('"') if found else ""

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        yield self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


def _range(header: str, size: int) -> tuple[int, int] | None:
    """(start, end) of a Range header, which may be empty; None when there is none to obey."""
    asked = _RANGE.fullmatch(header)
    if asked is None or not (asked[1] or asked[2]):
        return None
    if not asked[1]:
        return max(0, size - int(asked[2])), size
    start, last = int(asked[1]), int(asked[2] or size)
    return (start, min(last + 1, size)) if start <= last else None


class WebServer(http.server.ThreadingHTTPServer):
    """HTTPS server of one vCenter."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, vcenter: Vcenter, host: str, port: int, certificate: Path, key: Path) -> None:
        """Listens; port 0 takes a free one."""
        super().__init__((host, port), type("Handler", (_Handler,), {"vcenter": vcenter}))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.show(certificate, key)
        self.socket: socket.socket = self._context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    def show(self, certificate: Path, key: Path) -> None:
        """New connections see this certificate."""
        self._context.load_cert_chain(certificate, key)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError | TimeoutError):
            log.exception("serving %s", client_address)
