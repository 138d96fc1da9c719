# SPDX-License-Identifier: Apache-2.0
"""Logging in to the simulated vCenter, and what it refuses to others."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from pyVim.connect import SmartConnect
from pyVmomi import SoapStubAdapter, vim
from tests.integration.lab.kit import PASSWORD, USERNAME, connected, trust

from sendense_lab.client import LabClient, LabError

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def test_who_logs_in_gets_a_session_and_gives_it_back(lab: LabClient) -> None:
    before = (await lab.counters())["sessions"]
    with connected(lab) as instance:
        assert instance.content.about.apiType == "VirtualCenter"
        assert instance.content.sessionManager.SessionIsActive(instance._stub.cookie.split('"')[1], USERNAME)
        assert (await lab.counters())["sessions"] == before + 1
    assert (await lab.counters())["sessions"] == before


async def test_pyvmomis_own_way_to_connect_works(lab: LabClient) -> None:
    connect: Any = SmartConnect
    instance = connect(host=lab.host, port=lab.port, user=USERNAME, pwd=PASSWORD, sslContext=trust(lab))
    assert instance.content.about.instanceUuid
    instance.content.sessionManager.Logout()
    instance._stub.DropConnections()


@pytest.mark.parametrize(
    ("username", "password"), [(USERNAME, "wrong"), ("somebody", PASSWORD), (USERNAME, PASSWORD + " ")]
)
async def test_a_wrong_password_is_an_invalid_login(lab: LabClient, username: str, password: str) -> None:
    with pytest.raises(vim.fault.InvalidLogin, match="incorrect user name or password"):
        with connected(lab, username, password):
            pass
    with connected(lab):  # resets the count of wrong ones
        pass


async def test_without_a_session_only_the_service_is_shown(lab: LabClient) -> None:
    stub = SoapStubAdapter(host=lab.host, port=lab.port, version="vim.version.v7_0", sslContext=trust(lab))
    try:
        content: Any = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
        for call in (
            lambda: content.rootFolder.childEntity,
            lambda: content.searchIndex.FindByUuid(None, "x", True, True),
            vim.ServiceInstance("ServiceInstance", stub).CurrentTime,
        ):
            with pytest.raises(vim.fault.NotAuthenticated):
                call()
    finally:
        stub.DropConnections()


async def test_an_expired_session_is_not_authenticated(lab: LabClient) -> None:
    with connected(lab) as instance:
        assert abs(instance.CurrentTime() - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(
            minutes=1
        )
        await lab.command("expire_sessions")
        with pytest.raises(vim.fault.NotAuthenticated):
            instance.CurrentTime()


async def test_five_wrong_passwords_lock_the_account(lab: LabClient) -> None:
    for _ in range(5):
        with pytest.raises(vim.fault.InvalidLogin), connected(lab, password="wrong"):
            pass
    with pytest.raises(vim.fault.InvalidLogin), connected(lab):
        pass
    await lab.command("set_password", password=PASSWORD)
    with connected(lab) as instance:
        assert instance.CurrentTime()


async def test_four_wrong_passwords_do_not(lab: LabClient) -> None:
    for _ in range(4):
        with pytest.raises(vim.fault.InvalidLogin), connected(lab, password="wrong"):
            pass
    with connected(lab) as instance:
        assert instance.CurrentTime()


@pytest.mark.parametrize("password", ['+a-b"c\\d e#f', " blanks ", "päß€", "x" * 128])
async def test_ff23_passwords_may_have_any_characters(lab: LabClient, password: str) -> None:
    await lab.command("set_password", password=password)
    try:
        with connected(lab, password=password) as instance:
            assert instance.CurrentTime()
    finally:
        await lab.command("set_password", password=PASSWORD)


async def test_the_certificate_is_verified_by_its_authority_and_name(lab: LabClient) -> None:
    def shake_hands(context: ssl.SSLContext, name: str) -> None:
        with socket.create_connection((lab.host, lab.port)) as plain:
            context.wrap_socket(plain, server_hostname=name).close()

    shake_hands(trust(lab), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(trust(lab), "other.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake_hands(ssl.create_default_context(), "localhost")
    names = x509.load_pem_x509_certificate(lab.server_certificate.read_bytes()).extensions
    alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["localhost", "vcenter.lab.example"]


async def test_an_expired_certificate_can_be_asked_for(short_tmp: Path) -> None:
    async with LabClient.start(short_tmp, options=["--expired"]) as lab:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"), connected(lab):
            pass


async def test_a_fault_on_order_comes_out_of_a_call_once(lab: LabClient) -> None:
    await lab.inject_fault("CurrentTime", "vmodl.fault.SystemError", message="by order", at_call=2)
    with connected(lab) as instance:
        instance.CurrentTime()
        with pytest.raises(Exception, match="by order") as caught:
            instance.CurrentTime()
        assert type(caught.value).__name__ == "vmodl.fault.SystemError"
        instance.CurrentTime()


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("nonsense", {}, "nonsense"),
        ("_machine", {"vm": "x"}, "no command"),
        ("state", {"vm": "nobody"}, "there is no VM nobody"),
        ("set", {"nonsense": 1}, "there is no setting nonsense"),
        ("set", {"areas_wrong": "nonsense"}, "there is no setting"),
        ("inject_fault", {"operation": "Login", "fault": "vim.fault.Nonsense"}, "Nonsense"),
        (
            "inject_fault",
            {"operation": "GET /folder", "fault": "vim.fault.FileFault"},
            "401, 500, drop, whole",
        ),
        ("add_vm", {"name": "odd", "disks": [{"capacity_bytes": 100}]}, "whole sectors"),
    ],
)
async def test_a_wrong_command_is_refused_in_words(
    lab: LabClient, command: str, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(LabError, match=words):
        await lab.command(command, **arguments)


async def test_a_vm_that_could_not_be_made_leaves_nothing(lab: LabClient) -> None:
    with pytest.raises(LabError):
        await lab.add_vm("twice", [65536, {"capacity_bytes": 512, "image": "/nonexistent"}])
    with connected(lab) as instance:
        view = instance.content.viewManager.CreateContainerView(
            instance.content.rootFolder, [vim.VirtualMachine], True
        )
        assert "twice" not in [each.name for each in view.view]
    await lab.add_vm("twice", [65536])


async def test_help_says_what_can_be_set(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sendense_lab.main", "vcenter", "--help"],
        capture_output=True,
        text=True,
        env={"COLUMNS": "100", "PATH": "/usr/bin:/bin", "NO_COLOR": "1", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    for words in (
        "--state",
        "--listen",
        "--username",
        "--password-file",
        "--expired",
        "control.sock",
        "ca.pem",
    ):
        assert words in done.stdout
    assert "Traceback" not in done.stdout


async def test_a_stopped_lab_is_gone(short_tmp: Path) -> None:
    async with LabClient.start(short_tmp) as lab:
        with connected(lab):
            pass
    with pytest.raises(ConnectionRefusedError), contextlib.ExitStack() as stack:
        stack.enter_context(connected(lab))
