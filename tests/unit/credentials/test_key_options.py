# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from sendense_credentials.key_options import KeyOptions, key_options
from sendense_credentials.main import parser

pytestmark = pytest.mark.unit


def parsed(tmp_path: Path, *words: str) -> KeyOptions:
    command_line = parser()
    options = command_line.parse_args(["--state", str(tmp_path), *words])
    return key_options(command_line, options, options.key_file or tmp_path / "kek.json")


def transit_words(tmp_path: Path, **changes: str) -> list[str]:
    (tmp_path / "ca.pem").touch()
    given = {
        "address": "https://bao.example.net:8200",
        "ca-file": str(tmp_path / "ca.pem"),
        "token-file": "/t",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    return [f"--transit-{name}={value}" for name, value in given.items() if value]


def test_without_options_the_keys_are_in_a_file(tmp_path: Path):
    assert parsed(tmp_path) == KeyOptions("local", tmp_path / "kek.json")


def test_transit_beside_the_file_is_there_to_open_what_is_under_it(tmp_path: Path):
    options = parsed(tmp_path, *transit_words(tmp_path, mount="m", key="k"))
    assert options.provider == "local"
    assert options.transit is not None
    assert (options.transit.mount, options.transit.key) == ("m", "k")
    assert options.transit.token_file == Path("/t")


def test_options_can_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ca.pem").touch()
    monkeypatch.setenv("SENDENSE_KEY_PROVIDER", "transit")
    monkeypatch.setenv("SENDENSE_TRANSIT_ADDRESS", "https://bao:1")
    monkeypatch.setenv("SENDENSE_TRANSIT_CA_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SENDENSE_TRANSIT_ROLE_ID_FILE", "/r")
    monkeypatch.setenv("SENDENSE_TRANSIT_SECRET_ID_FILE", "/s")
    monkeypatch.setenv("SENDENSE_KEY_FILE", "/k")
    options = parsed(tmp_path)
    assert options.provider == "transit"
    assert options.transit is not None
    assert (options.transit.role_id_file, options.transit.secret_id_file) == (Path("/r"), Path("/s"))
    assert (options.key_file, options.key_file_is_given) == (Path("/k"), True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"address": ""}, "--transit-address must be https://"),
        ({"address": "http://127.0.0.1:8200"}, "--transit-address must be https://"),
        ({"address": "https://user@bao"}, "--transit-address must be https://"),
        ({"address": "https://bao/v1"}, "--transit-address must be https://"),
        ({"ca_file": ""}, "--transit-ca-file is required"),
        ({"ca_file": "/nowhere.pem"}, "there is no file /nowhere.pem"),
        ({"token_file": ""}, "give --transit-token-file, or --transit-role-id-file with"),
        ({"role_id_file": "/r"}, "give --transit-token-file, or"),
        ({"role_id_file": "/r", "secret_id_file": "/s"}, "give --transit-token-file, or"),
        ({"token_file": "", "secret_id_file": "/s"}, "give --transit-token-file, or"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], words: str
):
    with pytest.raises(SystemExit) as ended:
        parsed(tmp_path, "--key-provider=transit", *transit_words(tmp_path, **changes))
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_token_cannot_be_given_on_the_command_line():
    options = [option for action in parser()._actions for option in action.option_strings]
    assert {each for each in options if "token" in each or "secret" in each} == {
        "--transit-token-file",
        "--transit-secret-id-file",
    }
