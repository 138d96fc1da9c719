# SPDX-License-Identifier: Apache-2.0
"""The directory for sockets is there while something serves there, and no longer."""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.paths import Installation, made_runtime_dir, runtime_dir

pytestmark = pytest.mark.unit


@pytest.fixture(params=["near", "too deep"])
def state(request: pytest.FixtureRequest, short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory; temporary files go into a directory of the test's own."""
    (short_tmp / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(short_tmp / "t"))
    deep = "/".join(["d" * 40] * 3) if request.param == "too deep" else "s"
    (short_tmp / deep).mkdir(parents=True)
    return short_tmp / deep


def test_who_only_asks_for_it_makes_none(state: Path) -> None:
    assert not Installation(state).run.exists()
    assert not Installation(state).hub.api_socket.parent.exists()
    assert not runtime_dir(state).exists()


def test_it_goes_with_who_serves_there_unless_somebody_else_does(state: Path) -> None:
    with made_runtime_dir(state) as run:
        assert run == runtime_dir(state)
        assert run.stat().st_mode & 0o777 == 0o700
        (run / "hub" / "x").mkdir(parents=True)
    assert not run.exists()
    with made_runtime_dir(state):
        (run / "cred").mkdir()
        (run / "cred" / "other.sock").touch()
        (run / "hub").mkdir()
    assert [path.name for path in run.rglob("*")] == ["cred", "other.sock"]


def test_one_that_a_person_named_is_left_alone(state: Path) -> None:
    chosen = state / "chosen"
    chosen.mkdir()
    with made_runtime_dir(state, chosen) as run:
        assert run == chosen
    assert chosen.is_dir()
    assert not runtime_dir(state).exists()


def test_a_second_start_that_fails_takes_nothing_from_who_serves_there(state: Path) -> None:
    with made_runtime_dir(state) as run:
        (run / "x").mkdir()
        with made_runtime_dir(state) as again:
            assert again == run
        assert (run / "x").is_dir()
    assert not run.exists()


def test_one_that_is_removed_while_another_begins_to_serve_is_made_anew(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making and the holding, the last one before ends."""
    lock, removed = fcntl.flock, list[Path]()

    def late(held: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not removed:
            removed.append(Path(f"/proc/self/fd/{held}").readlink())
            removed[0].rmdir()
        lock(held, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with made_runtime_dir(state) as run:
        assert removed == [run]
        assert run.is_dir()
    assert not run.exists()


@pytest.mark.parametrize("state", ["too deep"], indirect=True)
def test_a_short_one_that_is_missing_is_not_named_to_who_asks(state: Path) -> None:
    """Somebody else could make it meanwhile, and would be told secrets there."""
    with made_runtime_dir(state) as run:
        assert runtime_dir(state) == run
        assert run.parent == Path(tempfile.gettempdir())
    assert runtime_dir(state) == state.resolve() / "run"


@pytest.mark.parametrize("state", ["too deep"], indirect=True)
def test_a_short_one_that_others_can_enter_is_used_by_nobody(state: Path) -> None:
    with made_runtime_dir(state) as short:
        pass
    short.mkdir()
    short.chmod(0o755)
    with pytest.raises(SendenseError) as asked:
        runtime_dir(state)
    with pytest.raises(SendenseError) as served, made_runtime_dir(state):
        pass
    assert asked.value.reason == served.value.reason == Reason.REASON_INTERNAL
    assert list(short.iterdir()) == []
