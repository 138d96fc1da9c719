# SPDX-License-Identifier: Apache-2.0
"""The source `vddk`: its exact command line, seen by a stand-in for nbdkit's plugin and VMware's library."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import nbd
import pytest
import pytest_asyncio
from tests.contract.kit import (
    DATA,
    PASSWORD,
    REFUSED_LATER,
    THUMBPRINT,
    USER,
    Stand,
    a_library,
    login,
    vddk_source,
)
from tests.integration.vsphere.kit import fails

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources import VddkSource, vddk_version
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def stand(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    async with a_library(short_tmp, None, monkeypatch) as made:  # type: ignore[arg-type]
        made.run_dir = short_tmp / "n"
        yield made


def change(stand: Stand, **changes: object) -> None:
    assert isinstance(stand.source, VddkSource)
    stand.source = dataclasses.replace(stand.source, **changes)  # type: ignore[arg-type]


async def test_the_command_line_is_exactly_this_and_the_password_comes_by_descriptor(
    stand: Stand, short_tmp: Path
) -> None:
    async with stand.open("j-2000") as source:
        assert await (await stand.reader(source)).read() == DATA
        (asked,) = [json.loads(line) for line in (short_tmp / "record").read_text().splitlines()]
    run = short_tmp / "n"
    socket = f"--unix={run}/j-2000.sock"
    filters = ["--filter=retry"]
    assert asked["before"] == ["--foreground", "--exit-with-parent", "--readonly", socket, *filters]
    descriptor = asked["given"].pop("password")
    assert descriptor[0] == "-"
    assert descriptor[1:].isdecimal()
    assert asked["given"] == {
        "libdir": f"{short_tmp}/vmware-vix-disklib-distrib",
        "config": f"{run}/j-2000.vddk",
        "server": "vcenter.example.com",
        "port": "8443",
        "thumbprint": THUMBPRINT,
        "user": USER,
        "vm": "moref=vm-16",
        "snapshot": "snapshot-17",
        "transports": "san:nbdssl",
        "file": "[data store] a folder/web=1.vmdk",
        "retries": "3",
        "retry-delay": "5",
    }
    assert asked["password_sha256"] == hashlib.sha256(PASSWORD.encode()).hexdigest()
    # nbdkit would start itself again to set this, and put the password into a file meanwhile.
    assert asked["library_path"].split(":")[0] == f"{short_tmp}/vmware-vix-disklib-distrib/lib64"
    assert asked["config"].splitlines() == [
        "vixDiskLib.nfcAio.Session.BufSizeIn64KB=16",
        "vixDiskLib.nfcAio.Session.BufCount=4",
        f'tmpDirectory="{run}/j-2000.tmp"',
    ]


@pytest.mark.parametrize(
    "password", ["+-\"\\'#$`&<>%s{}", " blanks before and after ", "-" * 128, "pässwörd ☃ 密码"]
)
async def test_ff23_passwords_of_all_kinds_reach_the_library(
    stand: Stand, short_tmp: Path, password: str
) -> None:
    change(stand, login=login(password))
    with fails(Reason.REASON_VCENTER_LOGIN_FAILED):  # the stand-in's password is another
        async with stand.open():
            pass
    (asked,) = [json.loads(line) for line in (short_tmp / "record").read_text().splitlines()]
    assert asked["password_sha256"] == hashlib.sha256(password.encode()).hexdigest()


async def test_rule_24_a_refused_login_is_tried_once(stand: Stand, short_tmp: Path) -> None:
    change(stand, login=login("wrong"))
    with fails(Reason.REASON_VCENTER_LOGIN_FAILED, "incorrect user name or password") as caught:
        async with stand.open():
            pass
    assert not caught.value.retryable
    assert "wrong" not in str(caught.value)
    assert (short_tmp / "record.tries").read_text().splitlines() == ["tried"]
    assert stand.left() == []


async def test_rule_24_a_login_that_is_refused_while_it_reads_is_tried_once(
    stand: Stand, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the password was changed, and a lost connection is opened again."""
    monkeypatch.setattr("sendense_agent.datapath.sources.vddk._RETRY_AFTER_S", 1)
    change(stand, file_name=REFUSED_LATER)
    with fails(Reason.REASON_VCENTER_LOGIN_FAILED, "incorrect user name or password"):
        async with stand.open(capacity_bytes=512) as source:
            with pytest.raises(nbd.Error):
                await (await stand.reader(source)).read(0, 512)
            raise SendenseError(Reason.REASON_SOURCE_READ_FAILED, "the copy's words")
    assert len((short_tmp / "record.tries").read_text().splitlines()) == 3  # two of them were well
    assert stand.left() == []


async def test_ff24_a_server_with_another_certificate_is_not_trusted(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendense_agent.datapath.sources.vddk._RETRIES", 0)
    change(stand, thumbprint=":".join(["00"] * 20))
    with fails(Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED, "thumbprint"):
        async with stand.open():
            pass
    assert stand.left() == []


async def test_a_disk_that_cannot_be_opened_is_told_with_vddks_words(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendense_agent.datapath.sources.vddk._RETRIES", 0)
    change(stand, file_name="[data store] none.vmdk")
    with fails(Reason.REASON_SOURCE_READ_FAILED, "cannot find the file specified") as caught:
        async with stand.open():
            pass
    assert caught.value.retryable


async def test_the_library_is_known_by_what_nbdkit_says_of_it(stand: Stand, short_tmp: Path) -> None:
    assert await vddk_version(str(vddk_source(short_tmp).libdir)) == "VDDK 8"
    assert await vddk_version(str(short_tmp)) == ""
    assert await vddk_version("") == ""


async def test_without_the_plugin_there_is_no_library(short_tmp: Path) -> None:
    """As with the nbdkit of Debian and Ubuntu."""
    assert await vddk_version(str(short_tmp)) == ""


async def test_without_nbdkit_there_is_no_library(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(short_tmp))
    assert await vddk_version(str(short_tmp)) == ""
