# SPDX-License-Identifier: Apache-2.0
"""A start after everything was killed waits for what still ends."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import earlier_hub, listen_address
from sendense_common.errors import SendenseError
from sendense_common.service import only_one

pytestmark = pytest.mark.unit


class Time:
    """Passes when somebody sleeps, and then something may happen."""

    def __init__(self, at: dict[int, Callable[[], object]] | None = None) -> None:
        self.now_s, self._sleeps, self._at = 0.0, 0, at or {}

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._sleeps += 1
        self._at.get(self._sleeps, lambda: None)()


async def start(
    file: Path, time: Time, said: list[str], *, given: str = "", locks: tuple[Path, ...] = ()
) -> str:
    return await earlier_hub.waited_for(
        lambda: listen_address.choose(given, file, []), locks, said.append, clock=time.clock, sleep=time.sleep
    )


async def test_a_kept_port_that_the_hub_before_still_has_is_waited_for(tmp_path: Path):
    before, said, file = socket.create_server(("127.0.0.1", 0)), list[str](), tmp_path / "listen"
    address = f"127.0.0.1:{before.getsockname()[1]}"
    listen_address.keep(file, address, address)
    with before:
        assert await start(file, Time({15: before.close}), said) == address
    assert len(said) == 1
    assert "waiting" in said[0]


async def test_a_kept_port_that_somebody_else_has_is_refused_in_the_end(tmp_path: Path):
    said, file, time = list[str](), tmp_path / "listen", Time()
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        listen_address.keep(file, address, address)
        with pytest.raises(SendenseError) as told:
            await start(file, time, said)
        assert told.value.reason == Reason.REASON_LISTENER_REFUSED
        assert "wait until" in told.value.remedy
        assert 3 < time.now_s < 10
        # What is given anew is refused at once.
        time = Time()
        with pytest.raises(SendenseError):
            await start(file, time, said, given=address)
    assert (len(said), time.now_s) == (1, 0)


async def test_an_address_that_is_not_ours_is_refused_at_once(tmp_path: Path):
    said, file, time = list[str](), tmp_path / "listen", Time()
    listen_address.keep(file, "192.0.2.1:8022", "192.0.2.1:8022")
    with pytest.raises(SendenseError, match=r"192\.0\.2\.1 port 8022"):
        await start(file, time, said)
    assert (said, time.now_s) == ([], 0)


async def test_services_that_still_hold_their_state_are_waited_for_but_not_for_good(tmp_path: Path):
    said, lock, time = list[str](), tmp_path / "hub.lock", Time()
    with socket.create_server(("127.0.0.1", 0)) as one:
        address = f"127.0.0.1:{one.getsockname()[1]}"
    listen_address.keep(tmp_path / "listen", address, address)
    held = only_one(lock, "hub")
    held.__enter__()
    time = Time({7: lambda: held.__exit__(None, None, None)})
    assert await start(tmp_path / "listen", time, said, locks=(tmp_path / "none", lock)) == address
    assert (len(said), round(time.now_s / 0.2)) == (1, 7)
    time = Time()
    with only_one(lock, "hub"):  # the hub itself says what is wrong
        assert await start(tmp_path / "listen", time, said, locks=(lock,)) == address
    # An orphaned hub has 30 seconds for its jobs and 5 for its gateways.
    assert 35 < time.now_s < 60
    assert await start(tmp_path / "listen", Time(), said, locks=(lock,)) == address
    assert len(said) == 2
