# SPDX-License-Identifier: Apache-2.0
"""From the invitation to an agent that the hub knows, and all that must end it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import select
import sqlite3
import stat
import sys
from pathlib import Path

import asyncssh
import pytest
from tests.integration.audit_log.kit import no_room, records
from tests.integration.enrolment.kit import SITE, WITHIN_S, Centre
from tests.integration.tunnel.kit import until

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.config import load_config, ssh_key_file
from sendense_agent.control import enrolling
from sendense_agent.control.enrolling import Asked, enrol
from sendense_cli.commands.agent import invite_agent
from sendense_cli.session import Session
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentKeys, load_agent_keys
from sendense_common.tunnel import dial, ensure_key, fingerprint
from sendense_hub.domain.invitations import CODE_FOR_US

pytestmark = pytest.mark.integration


async def refused(centre: Centre, asked: Asked, name: str = "agent") -> SendenseError:
    with pytest.raises(SendenseError) as error:
        async with asyncio.timeout(WITHIN_S):
            await enrol(centre.agent(name), asked, lambda text: None)
    return error.value


async def test_an_invited_agent_is_let_in_when_its_fingerprint_was_compared(centre: Centre):
    asked = await centre.invited()
    assert (await centre.listed())["state"] == "invited"
    shown = await centre.shows(asked)
    waits = await centre.listed()
    assert (waits["state"], waits["invitation"]["fingerprint"]) == ("pending", shown)
    assert not centre.waiting[0].done()

    await centre.approve(shown)
    assert await asyncio.wait_for(centre.waiting[0], WITHIN_S)
    paths = centre.agent()
    config = load_config(paths)
    assert (config.agent_id, config.hub_port) == (SITE, centre.port)
    assert fingerprint(config.hub_host_key) == asked.hub_fingerprint
    async with dial(config.tunnel(paths)) as tunnel:  # with the whole key pinned, and its own keys
        await tunnel.publish(paths.grpc_socket)
        assert (centre.paths.agents_dir / f"{SITE}.sock").exists()
    listed = await centre.listed()
    assert (listed["state"], listed["fingerprint"]) == ("approved", shown)
    assert await centre.lease_keys() == {SITE: load_agent_keys(paths.lease_keys_file).public.sealing}
    # Again is no second enrolment, and approving again no error.
    assert await enrol(paths, asked, lambda text: None)
    await centre.approve(shown)


async def test_private_keys_never_leave_and_nobody_else_can_read_them(centre: Centre):
    await centre.let_in()
    paths = centre.agent()
    private = {ssh_key_file(paths), paths.lease_keys_file}
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}
    assert not (paths.state / "enrolment").exists()
    # The first line of an OpenSSH key is the same in all of them.
    secrets = ssh_key_file(paths).read_bytes().splitlines()[2:5]
    secrets += [line for line in paths.lease_keys_file.read_bytes().splitlines() if b"-" not in line]
    assert len(secrets) == 5
    kept = [
        file for file in centre.directory.rglob("*") if file.is_file() and paths.state not in file.parents
    ]
    assert any(file.name == "catalog.sqlite" for file in kept)
    for file in kept:
        assert not [secret for secret in secrets if secret in file.read_bytes()], file


async def test_the_code_is_kept_nowhere(centre: Centre):
    asked = await centre.invited()
    await centre.shows(asked)
    for file in centre.directory.rglob("*"):
        if file.is_file():
            assert asked.code.encode() not in file.read_bytes(), file
            assert asked.code.replace("-", "").encode() not in file.read_bytes(), file


async def test_interrupted_while_it_waits_the_same_line_goes_on_with_the_same_keys(centre: Centre):
    asked = await centre.invited()
    first = await centre.shows(asked)
    centre.waiting[0].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await centre.waiting[0]
    await centre.approve(first)
    typed = dataclasses.replace(asked, code=asked.code.lower())
    assert await asyncio.wait_for(enrol(centre.agent(), typed, lambda text: None), WITHIN_S)
    assert (await centre.listed())["fingerprint"] == first


async def test_interrupted_while_keys_take_their_places_the_same_line_finishes_it(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
):
    asked = await centre.invited()
    shown = await centre.shows(asked)
    put, calls = enrolling._put, []

    def dies_at_the_second(source, place):
        calls.append(place)
        if len(calls) == 2:
            raise KeyboardInterrupt
        put(source, place)

    monkeypatch.setattr(enrolling, "_put", dies_at_the_second)
    centre.waiting.pop().cancel()
    await centre.approve(shown)
    with pytest.raises(KeyboardInterrupt):
        enrolling._take_place(centre.agent(), asked, centre.agent().state / "enrolment", centre.host_key)
    monkeypatch.setattr(enrolling, "_put", put)
    await until(lambda: not (centre.agent().run / "enrolment.sock").exists(), "the first one has let go")
    assert await asyncio.wait_for(enrol(centre.agent(), asked, lambda text: None), WITHIN_S)
    paths = centre.agent()
    async with dial(load_config(paths).tunnel(paths)):
        pass


async def test_a_hub_that_is_not_the_invited_one_is_sent_nothing(centre: Centre):
    met = []

    class Impostor(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            met.append(username)
            return False

    key = asyncssh.generate_private_key("ssh-ed25519")
    async with await asyncssh.listen("127.0.0.1", 0, server_factory=Impostor, server_host_keys=[key]) as fake:
        asked = await centre.invited()
        error = await refused(centre, dataclasses.replace(asked, hub_port=fake.get_port()))
        assert error.reason == Reason.REASON_TUNNEL_REFUSED
        assert asked.hub_fingerprint in error.message
        assert met == []
        # It is the fingerprint that decided: with its own, the impostor would have heard of us.
        own = dataclasses.replace(asked, hub_port=fake.get_port(), hub_fingerprint=key.get_fingerprint())
        task = asyncio.create_task(enrol(centre.agent(), own, lambda text: None))
        centre.waiting.append(task)
        await until(lambda: met, "the impostor has heard of it")
    assert (await centre.listed())["state"] == "invited"


async def test_keys_that_the_hub_has_substituted_are_seen_and_never_reach_the_credentials_service(
    centre: Centre,
):
    shown = await centre.shows(await centre.invited())
    with contextlib.closing(sqlite3.connect(centre.paths.state / "catalog.sqlite")) as catalog, catalog:
        catalog.execute(
            "update invitations set sealing_public_key = ?", [AgentKeys.generate().public.sealing]
        )
    assert (await centre.listed())["invitation"]["fingerprint"] != shown
    with pytest.raises(SendenseError) as mismatch:
        await centre.approve(shown)
    assert mismatch.value.reason == Reason.REASON_FINGERPRINT_MISMATCH
    assert await centre.lease_keys() == {}
    # The invitation is spent: the right fingerprint comes too late.
    listed = await centre.listed()
    assert (listed["state"], listed["connected"]) == ("refused", False)
    with pytest.raises(SendenseError) as late:
        await centre.approve(shown)
    assert late.value.reason == Reason.REASON_INVITATION_NOT_FOUND
    with pytest.raises(SendenseError) as told:
        await asyncio.wait_for(centre.waiting[0], WITHIN_S)
    assert told.value.reason == Reason.REASON_INVITATION_INVALID
    assert "fingerprint" in told.value.message


@pytest.mark.parametrize(
    ("listens", "given", "warned"),
    [
        ("127.0.0.1:8022", "", True),
        ("127.0.0.1:8022", "backup.example.net:8022", True),
        ("::1:8022", "192.0.2.1:8022", True),
        ("127.0.0.1:8022", "127.0.0.1:8022", False),
        ("127.0.0.1:8022", "localhost:8022", False),
        ("127.0.0.1:8022", "[::1]:8022", False),
        ("0.0.0.0:8022", "backup.example.net:8022", False),
        ("192.0.2.1:8022", "", False),
    ],
)
async def test_an_invitation_to_a_hub_that_only_its_own_host_reaches_comes_with_a_warning(
    centre: Centre, capsys: pytest.CaptureFixture[str], listens: str, given: str, warned: bool
):
    centre.paths.endpoint_file.write_text(f"{listens}\n")
    await invite_agent(Session(centre.directory, as_json=False), SITE, given, rotate=False)
    told = capsys.readouterr()
    assert f"--hub {given or listens} " in told.out  # the line is there all the same
    assert (f"listens on {listens}, which only this host reaches" in told.err) == warned
    assert ("`sendense up --listen 0.0.0.0:8022`" in told.err) == warned
    await invite_agent(centre.session, SITE, given, rotate=False)
    told = capsys.readouterr()
    assert (bool(json.loads(told.out)["warning"]), told.err) == (warned, "")


async def test_a_code_that_is_left_out_of_the_line_is_asked_for_and_not_shown(
    centre: Centre, capsys: pytest.CaptureFixture[str]
):
    await invite_agent(
        Session(centre.directory, as_json=False), SITE, f"127.0.0.1:{centre.port}", rotate=False
    )
    told = capsys.readouterr().out
    assert "leave --code out, and it is asked for" in told
    (line,) = [each for each in told.splitlines() if each.startswith("sendense-agent ")]
    _, *words = line.split()
    place = words.index("--code")
    code = words[place + 1]
    del words[place : place + 2]
    words[words.index("--state") + 1] = str(centre.agent().state)
    command = [sys.executable, "-m", "sendense_agent.main", *words, "--no-wait"]

    ours, theirs = os.openpty()
    asking = await asyncio.create_subprocess_exec(
        *command,
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # no terminal but this one
    )
    assert asking.stdout is not None
    assert asking.stderr is not None
    async with asyncio.timeout(WITHIN_S):
        await asking.stderr.readuntil(b"Code of the invitation: ")
        os.write(ours, code.encode() + b"\n")
        said = await asking.stdout.read()
        assert await asking.wait() == 0
    echoed = os.read(ours, 1000) if select.select([ours], [], [], 0)[0] else b""
    os.close(ours)
    os.close(theirs)
    assert code.encode() not in said + echoed
    assert (await centre.listed())["state"] == "pending"

    nobody = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    async with asyncio.timeout(WITHIN_S):
        _, errors = await nobody.communicate()
    assert nobody.returncode == 2
    assert b"no code was given" in errors
    assert b"Traceback" not in errors


async def test_somebody_else_who_tries_a_code_makes_the_invitation_useless(centre: Centre):
    asked = await centre.invited()
    wrong = "2222-2222-2222" if asked.code != "2222-2222-2222" else "3333-3333-3333"
    assert (await refused(centre, dataclasses.replace(asked, code=wrong), "thief")).reason == (
        Reason.REASON_INVITATION_INVALID
    )
    assert (await refused(centre, asked)).reason == Reason.REASON_INVITATION_INVALID
    assert (await centre.listed())["invitation"]["why"] == "a wrong code was tried"


async def test_of_two_agents_with_one_code_at_once_none_is_let_in(centre: Centre):
    asked = await centre.invited()
    both = [enrol(centre.agent(name), asked, lambda text: None) for name in ("one", "two")]
    ended = await asyncio.wait_for(asyncio.gather(*both, return_exceptions=True), WITHIN_S)
    assert [getattr(each, "reason", each) for each in ended] == [Reason.REASON_INVITATION_INVALID] * 2
    assert (await centre.listed())["invitation"]["why"] == "its code was used by two agents"


async def test_eleven_minutes_later_the_code_is_no_more(centre: Centre):
    asked = await centre.invited()
    centre.offset_us = CODE_FOR_US + 60_000_000
    error = await refused(centre, asked)
    assert (error.reason, "in time" in error.message) == (Reason.REASON_INVITATION_INVALID, True)
    assert (await centre.listed())["invitation"]["state"] == "INVITATION_STATE_EXPIRED"


async def test_a_new_invitation_takes_the_place_of_the_one_before(centre: Centre):
    before = await centre.invited()
    await centre.shows(before)
    asked = await centre.invited()
    with pytest.raises(SendenseError, match="there is a newer one"):
        await asyncio.wait_for(centre.waiting[0], WITHIN_S)
    assert await centre.shows(asked)  # the agent that still asked with the old code guessed nothing


async def test_after_many_wrong_codes_nobody_is_told_more_and_a_right_one_still_works(centre: Centre):
    asked = await centre.invited()
    guess = dataclasses.replace(asked, site="elsewhere")
    reasons = [(await refused(centre, guess, f"thief{n}")).reason for n in range(11)]
    assert reasons[:10] == [Reason.REASON_INVITATION_INVALID] * 10
    assert reasons[10] == Reason.REASON_ENROLMENT_LIMITED
    assert await centre.shows(asked)


async def test_an_invitation_that_a_guess_makes_useless_is_recorded_however_many_guesses_came_before(
    centre: Centre, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    asked = await centre.invited()
    async with audit_log.opened(tmp_path / "audit-log", "hub") as log:
        guess = dataclasses.replace(asked, site="elsewhere")
        for number in range(10):
            await refused(centre, guess, f"thief{number}")
        wrong = "2222-2222-2222" if asked.code != "2222-2222-2222" else "3333-3333-3333"
        guess = dataclasses.replace(asked, code=wrong)
        with no_room():
            assert (await refused(centre, guess)).reason == Reason.REASON_AUDIT_LOG_UNAVAILABLE
        assert (await centre.listed())["state"] == "invited"

        assert (await refused(centre, guess)).reason == Reason.REASON_ENROLMENT_LIMITED
        assert (await centre.listed())["invitation"]["why"] == "a wrong code was tried"
        (spent,) = records(log, "agent.reject")
        assert (spent.subject, spent.actor, spent.outcome) == (SITE, f"unproven:{SITE}", "done")
        assert spent.facts["why"] == "a wrong code was tried"
        assert "was made useless: a wrong code was tried" in caplog.text


async def test_strangers_are_not_taken_for_an_agent_whatever_its_name(centre: Centre, tmp_path: Path):
    asked = await centre.invited("unknown")
    async with audit_log.opened(tmp_path / "audit-log", "hub") as log:
        await refused(centre, dataclasses.replace(asked, site="elsewhere"))
        await centre.shows(asked)
        tried = records(log, "agent.enroll")
        assert [(each.actor, each.outcome) for each in tried] == [
            ("unproven:elsewhere", "refused"),
            ("unproven:unknown", "done"),
        ]


async def test_approving_twice_at_once_is_once(centre: Centre):
    shown = await centre.shows(await centre.invited())
    await asyncio.gather(centre.approve(shown), centre.approve(shown))
    assert await asyncio.wait_for(centre.waiting[0], WITHIN_S)
    assert (await centre.listed())["fingerprint"] == shown


async def test_a_rejected_agent_is_told_so(centre: Centre):
    await centre.shows(await centre.invited())
    await centre.reject()
    with pytest.raises(SendenseError, match="an operator rejected it"):
        await asyncio.wait_for(centre.waiting[0], WITHIN_S)
    with pytest.raises(SendenseError) as again:
        await centre.reject()
    assert again.value.reason == Reason.REASON_INVITATION_NOT_FOUND


async def test_the_configuration_of_before_keeps_its_limits(centre: Centre):
    paths = centre.agent()
    paths.state.mkdir()
    facts = {
        "agent_id": "old",
        "hub_host": "h",
        "hub_port": 1,
        "hub_host_key": "k",
        "limits": {"reads_per_host": 9},
    }
    (paths.state / "agent.json").write_text(json.dumps(facts))
    ensure_key(ssh_key_file(paths), "old")
    shown = await centre.shows(await centre.invited())
    assert load_config(paths).agent_id == "old"  # nothing changes before the approval
    await centre.approve(shown)
    assert await asyncio.wait_for(centre.waiting[0], WITHIN_S)
    assert (load_config(paths).agent_id, load_config(paths).limits.reads_per_host) == (SITE, 9)
