# SPDX-License-Identifier: Apache-2.0
"""What can be known of the containers without an engine: the files agree with the code and each other."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from tests.unit.packaging.containers import ROOT, SERVICES, Containerfile, compose, mounts

import sendense_agent.main
import sendense_credentials.main
import sendense_hub.main
from sendense_cli.stack import _STOP_GRACE_S
from sendense_common.paths import AgentPaths, CredentialsPaths, HubPaths, Installation

pytestmark = pytest.mark.unit

STATE = Path("/var/lib/sendense")
KEY_ON_HOST = "${SENDENSE_KEY_ON_HOST:-/etc/sendense/key}"
PARSERS = {
    "hub": sendense_hub.main.parser,
    "agent": sendense_agent.main.parser,
    "credentials": sendense_credentials.main.parser,
}


def options(service: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the service's real command line makes of what its image starts."""
    file = Containerfile(service)
    for each in file.all("ENV"):
        for name, _, value in (word.partition("=") for word in each.words):
            monkeypatch.setenv(name, value)
    return PARSERS[service]().parse_args(file.one("CMD").strings)


def below(path: str, places: set[str]) -> bool:
    """Whether a path is one of the places or in one."""
    return any(Path(path).is_relative_to(place) for place in places)


def test_compose_has_the_three_services_and_builds_them_from_their_folders():
    services = compose()["services"]
    assert set(services) == set(SERVICES)
    for name, service in services.items():
        assert service["build"] == {"context": ".", "dockerfile": f"services/{name}/Containerfile"}
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["image"] == f"sendense-{name}"


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_is_made_of_debian_locked_packages_and_what_is_in_the_checkout(service: str):
    file = Containerfile(service)
    assert [each.words[0] for each in file.all("FROM")] == ["debian:12-slim", "debian:12-slim"]
    setup = (ROOT / "tools" / "setup").read_text()
    known = setup.split("PACKAGES=(")[1].split(")")[0].split()
    assert file.packages - {"python3"} <= set(known)
    assert "locks/runtime.txt" in file.copies
    installs = [each.rest for each in file.all("RUN") if "pip install" in each.rest]
    assert len(installs) == 1
    assert f"--require-hashes -r {file.copies['locks/runtime.txt']}" in installs[0]
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in file.copies:
        assert (ROOT / source).exists(), f"{service} copies {source}"
        assert below(source, set(let_in)), f"{source} never reaches the builder"


def test_nothing_is_let_in_that_no_image_copies():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    copied = {source for service in SERVICES for source in Containerfile(service).copies}
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_an_image_has_the_tools_its_service_runs_and_the_nbd_binding_where_it_is_imported():
    assert Containerfile("hub").packages >= {"qemu-utils", "libnbd-bin", "python3-libnbd"}
    assert Containerfile("agent").packages >= {"nbdkit", "libnbd-bin", "python3-libnbd"}
    assert Containerfile("credentials").packages == {"python3", "python3-venv"}
    for service in SERVICES:
        text = Containerfile(service).path.read_text()
        linked = "ln -s /usr/lib/python3/dist-packages/nbd.py /usr/lib/python3/dist-packages/libnbdmod*.so"
        assert (linked in text) == (service != "credentials")
        assert "system-site-packages" not in text


def test_all_run_as_one_user_who_is_not_root():
    # Sockets have mode 0600: hub and credentials reach each other only as the same user.
    users = {Containerfile(service).one("USER").rest for service in SERVICES}
    assert len(users) == 1
    uid, gid = map(int, users.pop().split(":"))
    assert uid >= 1000
    assert gid >= 1000
    for service in SERVICES:
        names = [each.name for each in Containerfile(service).instructions]
        assert names.index("USER") > max(number for number, name in enumerate(names) if name == "RUN")
        assert f"--uid {uid} " in Containerfile(service).all("RUN")[-1].rest
        assert "user" not in compose()["services"][service]


@pytest.mark.parametrize("service", SERVICES)
def test_the_command_of_an_image_is_one_that_the_service_understands(
    service: str, monkeypatch: pytest.MonkeyPatch
):
    file = Containerfile(service)
    assert file.one("ENTRYPOINT").strings == ["/opt/sendense/bin/python", "-m", f"sendense_{service}.main"]
    assert not {"command", "entrypoint", "environment", "env_file"} & set(compose()["services"][service])
    found = options(service, monkeypatch)
    places = set(mounts(service))
    assert below(str(found.state), places)
    assert below(str(found.run), places)
    # Every directory that a volume is mounted on is there in the image, owned by the service's user.
    assert places <= file.made_directories
    assert set(file.one("VOLUME").strings) <= places


def test_the_services_find_each_other(short_tmp: Path, monkeypatch: pytest.MonkeyPatch):
    hub, credentials = options("hub", monkeypatch), options("credentials", monkeypatch)
    assert hub.credentials_run == credentials.run
    assert credentials.telemetry_socket == HubPaths(hub.state, hub.run).telemetry_socket
    for service, other in (("hub", credentials.run), ("credentials", hub.run)):
        name, read_only = mounts(service)[str(other)]
        assert read_only
        assert name in {each for each, _ in mounts("credentials" if service == "hub" else "hub").values()}
    # The `sendense` command looks where `sendense up` would have put things.
    installation = Installation(short_tmp)
    for paths, found in ((installation.hub, hub), (installation.credentials, credentials)):
        assert found.state == STATE / paths.state.relative_to(short_tmp)
        assert found.run == STATE / paths.run.relative_to(short_tmp)
    assert f"SENDENSE_STATE={STATE} " in Containerfile("credentials").path.read_text()


def test_the_hub_has_no_way_to_the_operators_socket(monkeypatch: pytest.MonkeyPatch):
    found = options("credentials", monkeypatch)
    socket = CredentialsPaths(found.state, found.run).operator_socket
    deepest = max((each for each in mounts("credentials") if below(str(socket), {each})), key=len)
    name, read_only = mounts("credentials")[deepest]
    assert not read_only
    assert name not in {each for each, _ in mounts("hub").values()}
    assert deepest in Containerfile("credentials").one("VOLUME").strings


def test_hub_and_credentials_share_sockets_and_nothing_else():
    names = {service: {name for name, _ in mounts(service).values()} for service in SERVICES}
    assert names["hub"] & names["credentials"] == {"hub-sockets", "credentials-sockets"}
    assert not names["agent"] & (names["hub"] | names["credentials"])
    assert set().union(*names.values()) == {*compose()["volumes"], KEY_ON_HOST}


def test_the_key_is_in_a_directory_of_the_host_that_credentials_can_write_to_and_no_other_has(
    monkeypatch: pytest.MonkeyPatch,
):
    directory = options("credentials", monkeypatch).key_file.parent
    # The directory itself: a file that is mounted by itself cannot be replaced by a new key.
    assert mounts("credentials")[str(directory)] == (KEY_ON_HOST, False)
    (bound,) = (each for each in compose()["services"]["credentials"]["volumes"] if isinstance(each, dict))
    assert bound["type"] == "bind"
    assert bound["bind"] == {"create_host_path": False}, "an empty one of root's would be no key"
    assert str(directory) in Containerfile("credentials").made_directories
    # Apart from the database, and nothing that an engine makes anew where the mount was forgotten.
    kept = {where for where, (name, _) in mounts("credentials").items() if name != KEY_ON_HOST}
    assert not below(str(directory), kept)
    assert str(directory) not in Containerfile("credentials").one("VOLUME").strings
    for service in ("hub", "agent"):
        assert {name for name, _ in mounts(service).values()} <= set(compose()["volumes"]), "of the host"
    assert "secrets" not in compose()
    page = (ROOT / "docs/operations.md").read_text()
    (default,) = re.findall(r"\{SENDENSE_KEY_ON_HOST:-(\S+)\}", KEY_ON_HOST)
    assert f"install -d -m 700 -o 10001 -g 10001 {default}\n" in page
    assert f"--volume {default}:{directory} sendense-credentials" in page
    assert f"--key-file {options('credentials', monkeypatch).key_file}\n" in page
    for service in SERVICES:
        assert not Containerfile(service).all("ARG")
        names = [word.split("=")[0] for each in Containerfile(service).all("ENV") for word in each.words]
        assert set(names) <= {"PYTHONPATH", "HOME", "SENDENSE_STATE", "SENDENSE_RUN"}


def test_nothing_is_privileged_and_only_the_hubs_ssh_is_published(monkeypatch: pytest.MonkeyPatch):
    services = compose()["services"]
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"] is True, "somebody must wait for orphans"
        assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"} & set(service)
        assert ("ports" in service) == (name == "hub")
    _, port = options("hub", monkeypatch).listen
    assert services["hub"]["ports"] == [f"{port}:{port}"]
    assert Containerfile("hub").one("EXPOSE").rest == str(port)
    assert services["credentials"]["network_mode"] == "none"
    assert not any("network_mode" in services[each] for each in ("hub", "agent"))


def test_a_service_is_given_the_time_that_it_may_need_to_stop():
    for name, service in compose()["services"].items():
        assert float(service["stop_grace_period"].removesuffix("s")) >= _STOP_GRACE_S[name]


def test_health_is_asked_at_the_socket_that_opens_last(monkeypatch: pytest.MonkeyPatch):
    hub, agent, credentials = (options(each, monkeypatch) for each in SERVICES)
    sockets = {
        "hub": HubPaths(hub.state, hub.run).api_socket,
        "agent": AgentPaths(agent.state, agent.run).grpc_socket,
        "credentials": CredentialsPaths(credentials.state, credentials.run).operator_socket,
    }
    for service, socket in sockets.items():
        python, flag, code, argument = Containerfile(service).one("HEALTHCHECK").strings
        assert (python, flag) == ("/opt/sendense/bin/python", "-c")
        assert argument == str(socket)
        compile(code, "HEALTHCHECK", "exec")
    assert (
        f"'{HubPaths(hub.state, hub.run).endpoint_file.name}'" in Containerfile("hub").one("HEALTHCHECK").rest
    )
    assert compose()["services"]["hub"]["depends_on"] == {"credentials": {"condition": "service_healthy"}}
