# SPDX-License-Identifier: Apache-2.0
"""Where the hub of `sendense up` listens, over its starts."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import listen_address
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def test_the_port_of_the_first_start_is_that_of_all_later_ones(tmp_path: Path, taken: int):
    file, port = tmp_path / "listen", free()
    first = listen_address.choose("", file, [taken, port])
    assert first == f"127.0.0.1:{port}"
    listen_address.keep(file, first, first)
    assert listen_address.choose("", file, [free()]) == first


def test_what_is_given_wins_and_is_kept(tmp_path: Path):
    file = tmp_path / "listen"
    listen_address.keep(file, "127.0.0.1:1", "127.0.0.1:1")
    given = f"0.0.0.0:{free()}"
    assert listen_address.choose(given, file, []) == given
    listen_address.keep(file, given, given)
    assert listen_address.choose("", file, []) == given


def test_port_0_is_another_one_that_is_kept(tmp_path: Path):
    file, port = tmp_path / "listen", free()
    listen_address.keep(file, "127.0.0.1:1", "127.0.0.1:1")
    assert listen_address.choose("0.0.0.0:0", file, [port]) == f"0.0.0.0:{port}"
    # Where all that we would choose from are taken, the kernel chooses; what it chose is kept.
    assert listen_address.choose("[::1]:0", file, []) == "[::1]:0"
    listen_address.keep(file, "[::1]:0", "::1:8022")
    assert file.read_text() == "[::1]:8022\n"


def test_what_is_kept_is_on_disk_before_it_counts_and_so_is_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps: list[str] = []
    synced, replaced = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append(
            "sync directory" if is_directory else f"sync {Path(f'/proc/self/fd/{descriptor}').read_text()}"
        )
        synced(descriptor)

    def replace(path: Path, to: Path) -> Path:
        steps.append("replace")
        return replaced(path, to)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    listen_address.keep(tmp_path / "listen", "127.0.0.1:0", "127.0.0.1:8022")
    assert steps == ["sync 127.0.0.1:8022\n", "replace", "sync directory"]
    assert [each.name for each in tmp_path.iterdir()] == ["listen"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_port_that_somebody_else_has_is_refused_by_its_number_with_a_way_out(
    tmp_path: Path, taken: int, kept: bool
):
    file, address = tmp_path / "listen", f"127.0.0.1:{taken}"
    if kept:
        listen_address.keep(file, address, address)
    with pytest.raises(SendenseError) as told:
        listen_address.choose("" if kept else address, file, [free()])
    assert told.value.reason == Reason.REASON_LISTENER_REFUSED
    assert f"127.0.0.1 port {taken}" in told.value.message
    assert "--listen" in told.value.remedy
    # Agents of other sites know the kept one: another is not taken behind their backs.
    assert ("agent rotate-key" in told.value.remedy) == kept


def test_a_file_that_says_no_address_is_named(tmp_path: Path):
    file = tmp_path / "listen"
    file.write_text("somewhere\n")
    with pytest.raises(SendenseError) as told:
        listen_address.choose("", file, [free()])
    assert str(file) in told.value.message


def test_ports_that_outgoing_connections_get_are_not_chosen():
    assert not {*listen_address.candidates(range(20000, 60000), shuffle=list)} & set(range(20000, 60000))
    found = [*listen_address.candidates(range(32768, 61000), shuffle=lambda ports: [*reversed(ports)])]
    assert found[0] == 32767
    assert all(1024 < port < 32768 for port in found)
