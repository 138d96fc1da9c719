# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.config import load_config
from sendense_agent.domain.checkpoints import MIB, Checkpoints
from sendense_agent.domain.limits import GIB, Limits
from sendense_agent.main import main
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths
from sendense_common.tunnel import ensure_key

pytestmark = pytest.mark.unit


def configure(state: Path, *more: str) -> int:
    hub_key = ensure_key(state.parent / "hub_key", "hub")
    arguments = ["configure", "--state", str(state), "--site", "paris", "--hub", "h:22", "--hub-key", hub_key]
    return main([*arguments, *more])


def limits(state: Path) -> Limits:
    return load_config(AgentPaths(state, state / "run")).limits


def test_limits_are_kept_and_what_is_not_given_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = tmp_path / "agent"
    assert configure(state) == 0
    assert limits(state) == Limits()
    assert configure(state, "--reads-per-host", "9") == 0
    assert configure(state, "--snapshots-per-datastore", "7") == 0
    assert limits(state) == Limits(reads_per_host=9, snapshots_per_datastore=7)
    more = ("--floor-gib", "1.5", "--floor-percent", "0", "--max-snapshot-age", "0.5")
    assert configure(state, *more) == 0
    assert limits(state) == Limits(
        reads_per_host=9,
        snapshots_per_datastore=7,
        floor_bytes=3 * GIB // 2,
        floor_percent=0,
        max_snapshot_age_s=1800,
    )
    assert "ssh-ed25519" in capsys.readouterr().out


def test_a_limit_that_would_stop_every_backup_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = tmp_path / "agent"
    assert configure(state, "--reads-per-host", "0") == 2
    assert "reads_per_host must be more than 0" in capsys.readouterr().err
    assert not (state / "agent.json").exists()


def test_a_configuration_of_before_there_were_limits_still_works(tmp_path: Path):
    state = tmp_path / "agent"
    configure(state)
    facts = json.loads((state / "agent.json").read_text())
    del facts["limits"]
    (state / "agent.json").write_text(json.dumps(facts))
    assert limits(state) == Limits()


def test_checkpoints_are_kept_and_what_is_not_given_stays(tmp_path: Path):
    state = tmp_path / "agent"
    paths = AgentPaths(state, state / "run")
    configure(state)
    assert load_config(paths).checkpoints == Checkpoints(bytes=256 * MIB, seconds=10.0)
    assert configure(state, "--checkpoint-mib", "16") == 0
    assert configure(state, "--checkpoint-seconds", "2.5") == 0
    assert load_config(paths).checkpoints == Checkpoints(bytes=16 * MIB, seconds=2.5)


@pytest.mark.parametrize("wrong", [("--checkpoint-mib", "0"), ("--checkpoint-seconds", "0")])
def test_a_checkpoint_that_never_comes_or_never_ends_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, str]
):
    assert configure(tmp_path / "agent", *wrong) == 2
    assert "at least 1 MiB, and more than 0 seconds" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"reads_per_host": 0}, {"unknown": 1}, 7])
def test_limits_in_the_file_that_cannot_be_meant_are_refused_in_words(tmp_path: Path, wrong: object):
    state = tmp_path / "agent"
    configure(state)
    facts = json.loads((state / "agent.json").read_text())
    facts["limits"] = wrong
    (state / "agent.json").write_text(json.dumps(facts))
    with pytest.raises(SendenseError, match="cannot be understood") as caught:
        limits(state)
    assert caught.value.reason == Reason.REASON_INVALID_REQUEST


def test_vmwares_library_is_kept_and_can_be_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state, libdir = tmp_path / "agent", tmp_path / "vddk"
    (libdir / "lib64").mkdir(parents=True)
    assert configure(state, "--vddk-libdir", str(libdir)) == 0
    assert configure(state, "--vddk-transports", "san:nbdssl") == 0
    config = load_config(AgentPaths(state, state / "run"))
    assert (config.vddk_libdir, config.vddk_transports) == (str(libdir), "san:nbdssl")
    assert configure(state, "--vddk-libdir", "") == 0
    config = load_config(AgentPaths(state, state / "run"))
    assert (config.vddk_libdir, config.vddk_transports) == ("", "san:nbdssl")


def test_vmwares_library_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "vddk" / "lib64").mkdir(parents=True)
    monkeypatch.setenv("SENDENSE_VDDK_LIBDIR", str(tmp_path / "vddk"))
    assert configure(tmp_path / "agent") == 0
    assert load_config(AgentPaths(tmp_path / "agent", tmp_path)).vddk_libdir == str(tmp_path / "vddk")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--vddk-libdir", "/nowhere"), "/nowhere has no lib64"),
        (("--vddk-transports", "nbd,san"), "'nbd,san' is not MODE:MODE"),
    ],
)
def test_a_library_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
):
    assert configure(tmp_path / "agent", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "agent" / "agent.json").exists()
