# SPDX-License-Identifier: Apache-2.0
"""A backup of the database, and putting it back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shlex
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.credentials.kit import PASSWORD, Service, failure_of, running, sendense_credentials
from tests.integration.credentials.rooms import opened
from tests.integration.docs.page import ROOT

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.paths import CredentialsPaths
from sendense_credentials import restoring
from sendense_credentials.catalog import copies
from sendense_credentials.key_options import KeyOptions
from sendense_credentials.vault import create_key_file

pytestmark = pytest.mark.integration


def page_command(program: str) -> list[str]:
    """What docs/operations.md says, split into words."""
    (line,) = [
        line for line in (ROOT / "docs/operations.md").read_text().splitlines() if line.startswith(program)
    ]
    return shlex.split(line.removeprefix(program))


def back_up(service: Service, output: Path) -> subprocess.CompletedProcess[str]:
    """By the page's command."""
    words = page_command("sendense credentials backup")
    words[words.index("--output") + 1] = str(output)
    # The command finds the service's sockets by their place in an installation.
    state = service.paths.state.parent / "installation"
    (state / "run").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (state / "run" / "cred").symlink_to(service.paths.run)
    return subprocess.run(
        [sys.executable, "-m", "sendense_cli.main", "credentials", "backup", *words, "--state", str(state)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "HOME": "/nonexistent"},
    )  # fmt: skip


def restore(state: Path, source: Path, *more: str) -> Any:
    words = page_command("sendense-credentials restore")
    words[words.index("--state") + 1], words[words.index("--from") + 1] = str(state), str(source)
    return sendense_credentials("restore", *words, *more)


def test_a_backup_is_useless_without_the_key_and_puts_everything_back_with_it(short_tmp: Path):
    output = short_tmp / "out" / "b.sqlite"

    async def fill(service: Service) -> tuple[str, str]:
        await service.register()
        stored = await service.store("vc")
        return stored.credential_id, await service.issue(stored.credential_id)

    with running(short_tmp) as first:
        credential_id, lease = asyncio.run(fill(first))
        made = back_up(first, output)
        assert made.returncode == 0, made.stderr
        key_id, key = next(iter(json.loads(first.paths.key_file.read_text())["keys"].items()))
        assert f"needs these keys: {key_id}" in made.stdout
        again = back_up(first, output)
        assert again.returncode == 4
        assert "exists already" in again.stderr
        assert not list(first.paths.state.glob(".backup-*"))
        assert restore(first.paths.state, output).returncode == 1, "it runs"
        asyncio.run(first.redeem(lease))
        asyncio.run(first.store("later"))
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    data = output.read_bytes()
    password = PASSWORD.encode()
    for text in (password, base64.b64encode(password), PASSWORD.encode("utf-16-le"), key.encode()):
        assert text not in data
    assert base64.b64decode(key) not in data

    first.paths.database_file.write_bytes(b"lost")
    done = restore(first.paths.state, output)
    assert done.returncode == 0, done.stderr
    assert "restored 1 passwords. Agents that may get passwords again: site-a." in done.stdout
    (aside,) = first.paths.state.glob("credentials.sqlite.before-*")
    assert aside.read_bytes() == b"lost"
    assert stat.S_IMODE(first.paths.database_file.stat().st_mode) == 0o600

    async def after(service: Service) -> None:
        service.agent, service.issued = first.agent, first.issued
        error = await failure_of(service.redeem(lease))
        assert error.reason == Reason.REASON_LEASE_INVALID, "a lease that was used since opens nothing"
        assert (await service.redeem(await service.issue(credential_id))).password == PASSWORD

    with running(short_tmp) as second:
        asyncio.run(after(second))
        acts = "".join(path.read_text() for path in second.paths.audit_log_dir.rglob("*") if path.is_file())
        assert '"key.backup"' in acts
        assert '"key.restore"' in acts


async def refused(state: Path, source: Path, *, keys: Path | None = None) -> SendenseError:
    options = KeyOptions("local", keys or state / "kek.json")
    with pytest.raises(SendenseError) as error:
        await restoring.restore(CredentialsPaths(state, state), options, source, after_loss=False)
    return error.value


async def test_a_backup_whose_keys_are_missing_is_refused_and_they_are_named(tmp_path: Path):
    state, source, stranger = tmp_path / "state", tmp_path / "b.sqlite", tmp_path / "stranger.json"
    create_key_file(state / "kek.json")
    async with opened(state) as rooms:
        old = await rooms.keys.active.active_key_id()
        await rooms.store("vc-1")
        new, _ = await rooms.key_vault.rotate()
        await rooms.store("vc-2")
        with copies.copied(state / "credentials.sqlite") as copy:
            source.write_bytes(copy.read())
    before = (state / "credentials.sqlite").read_bytes()
    create_key_file(stranger)
    error = await refused(state, source, keys=stranger)
    assert error.reason == Reason.REASON_CREDENTIAL_UNREADABLE
    assert f"{old} (vc-1)" in error.message
    assert f"{new} (vc-2)" in error.message
    assert "--after-loss" in error.remedy
    assert (state / "credentials.sqlite").read_bytes() == before
    assert not list(state.glob(".*"))
    paths, options = CredentialsPaths(state, state), KeyOptions("local", stranger)
    told = await restoring.restore(paths, options, source, after_loss=True)
    assert "restored 2 passwords, of which 2 do not open and have to be given anew" in told


async def test_what_is_no_backup_is_refused_and_changes_nothing(tmp_path: Path):
    state = tmp_path / "state"
    create_key_file(state / "kek.json")
    async with opened(state) as rooms:
        await rooms.store("vc")
        with copies.copied(state / "credentials.sqlite") as copy:
            good = copy.read()
    before = (state / "credentials.sqlite").read_bytes()
    (tmp_path / "nonsense").write_bytes(b"nonsense" * 1000)
    (tmp_path / "cut-off").write_bytes(good[: len(good) // 2])
    with contextlib.closing(sqlite3.connect(tmp_path / "another")) as other, other:
        other.execute("CREATE TABLE credentials (x)")
    (tmp_path / "newer").write_bytes(good)
    with contextlib.closing(sqlite3.connect(tmp_path / "newer")) as newer, newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
    for name in ("missing", "nonsense", "cut-off", "another", "newer"):
        error = await refused(state, tmp_path / name)
        if name == "newer":
            assert "newer version" in error.remedy
        else:
            assert f"{tmp_path / name} is no backup of the credentials database" in error.message
        assert (state / "credentials.sqlite").read_bytes() == before
        assert not list(state.glob(".*"))
        assert not list(state.glob("*.before-*"))
