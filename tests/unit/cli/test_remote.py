# SPDX-License-Identifier: Apache-2.0
"""What a hub elsewhere is shown, and what is wrong with what was given for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli.remote import Hub
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text("sendense_x\n")
    return file


async def wrong(hub: Hub) -> SendenseError:
    with pytest.raises(SendenseError) as failed:
        async with hub.channel():
            pass
    return failed.value


@pytest.mark.parametrize("address", ["hub", "hub:", ":1", "hub:x", "hub:0", "hub:65536"])
async def test_an_address_has_a_host_and_a_port(address: str, token: Path):
    error = await wrong(Hub(address, token))
    assert (error.reason, error.metadata["field"]) == (Reason.REASON_INVALID_REQUEST, "--hub")


async def test_somebody_must_be_shown(token: Path, tmp_path: Path):
    assert "needs --token-file" in (await wrong(Hub("hub:1"))).message
    assert "need each other" in (await wrong(Hub("hub:1", certificate_file=tmp_path / "c"))).message


async def test_a_token_that_everybody_may_read_is_not_used(token: Path):
    token.chmod(0o644)
    error = await wrong(Hub("hub:1", token))
    assert "everybody may read" in error.message
    assert error.remedy == f"chmod 600 {token}"


@pytest.mark.parametrize("content", ["", "two words", "\x00", "é"])
async def test_what_is_no_token_is_not_sent_and_not_shown(token: Path, content: str):
    token.write_text(content)
    error = await wrong(Hub("hub:1", token))
    assert error.message == f"--token-file: {token} holds no token"


async def test_files_that_are_missing_or_no_pem_are_named(token: Path, tmp_path: Path):
    assert "No such file" in (await wrong(Hub("hub:1", tmp_path / "none"))).message
    assert "No such file" in (await wrong(Hub("hub:1", token, tmp_path / "none"))).message
    assert "is not PEM" in (await wrong(Hub("hub:1", token, token))).message
