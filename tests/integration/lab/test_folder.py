# SPDX-License-Identifier: Apache-2.0
"""Files of the simulated vCenter's datastore by HTTPS, also to nbdkit, also while the guest writes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import os
import random
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from tests.integration.lab.kit import connected, cookie_of, https, machine_of, take_snapshot

from sendense_common import process
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TAIL = 12345 * 512  # not a multiple of 64 KiB
QUERY = "?dcPath=DC0&dsName=datastore1"


async def image(lab: LabClient, name: str, capacity: int = TAIL, seed: int = 1) -> tuple[str, bytes]:
    """(path, bytes) of a VM's flat file."""
    await lab.add_vm(name, [capacity])
    data = random.Random(seed).randbytes(capacity)
    await lab.guest_write(name, 2000, 0, data)
    quoted = urllib.parse.quote(name)
    return f"/folder/{quoted}/{quoted}-flat.vmdk{QUERY}", data


def get(
    lab: LabClient, path: str, headers: dict[str, str], method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    with https(lab) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


async def test_without_a_session_no_file_is_shown(lab: LabClient, instance: Any) -> None:
    path, data = await image(lab, "private")
    good = cookie_of(instance)
    for headers in ({}, {"Cookie": 'vmware_soap_session="guess"'}, {"Cookie": 'other="x"'}):
        status, answer, body = get(lab, path, headers)
        assert (status, body) == (401, b"")
        assert "Basic" in answer["WWW-Authenticate"]
    assert get(lab, path, good)[0::2] == (200, data)
    await lab.command("expire_sessions")
    assert get(lab, path, good)[0] == 401


async def test_the_end_of_a_session_closes_the_files(lab: LabClient) -> None:
    path, _ = await image(lab, "logged-out")
    with connected(lab) as instance:
        cookie = cookie_of(instance)
        assert get(lab, path, cookie, "HEAD")[0] == 200
    assert get(lab, path, cookie, "HEAD")[0] == 401


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=511-70000", 511, 70001),
        (f"bytes={TAIL - 1}-", TAIL - 1, TAIL),
        (f"bytes={TAIL - 100}-{TAIL + 1000}", TAIL - 100, TAIL),
        ("bytes=-7", TAIL - 7, TAIL),
        (f"bytes=-{TAIL + 1}", 0, TAIL),
    ],
)
async def test_a_range_gives_exactly_its_bytes(
    lab: LabClient, instance: Any, asked: str, start: int, end: int
) -> None:
    path, data = await image(lab, f"range-{asked}".replace("=", "~"))
    status, headers, body = get(lab, path, {"Range": asked, **cookie_of(instance)})
    assert (status, body) == (206, data[start:end])
    assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{TAIL}"
    assert headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=-", "bytes=9-5", "bytes=0-1,5-6", "lines=1-2", "bytes=a-b"])
async def test_a_range_that_is_none_is_ignored(lab: LabClient, instance: Any, asked: str) -> None:
    path, data = await image(lab, f"odd-{asked}".replace("=", "~").replace(",", "~"))
    status, _, body = get(lab, path, {"Range": asked, **cookie_of(instance)})
    assert (status, body) == (200, data)


@pytest.mark.parametrize("asked", [f"bytes={TAIL}-", f"bytes={TAIL}-{TAIL}", "bytes=-0"])
async def test_a_range_beyond_the_end_cannot_be_satisfied(lab: LabClient, instance: Any, asked: str) -> None:
    path, _ = await image(lab, f"beyond-{asked}".replace("=", "~"))
    status, headers, body = get(lab, path, {"Range": asked, **cookie_of(instance)})
    assert (status, body, headers["Content-Range"]) == (416, b"", f"bytes */{TAIL}")


async def test_head_tells_the_size_and_sends_nothing(lab: LabClient, instance: Any) -> None:
    path, _ = await image(lab, "head")
    before = (await lab.counters()).get("folder bytes", 0)
    status, headers, body = get(lab, path, cookie_of(instance), "HEAD")
    assert (status, headers["Content-Length"], headers["Accept-Ranges"], body) == (
        200,
        str(TAIL),
        "bytes",
        b"",
    )
    assert (await lab.counters()).get("folder bytes", 0) == before


@pytest.mark.parametrize("name", ["with space", "plus+plus", "50%", "hash#tag", "ümläut 磁盘", "a&b=c?d"])
async def test_files_may_have_any_name(lab: LabClient, instance: Any, name: str) -> None:
    path, data = await image(lab, name, 1024)
    assert get(lab, path, cookie_of(instance))[0::2] == (200, data)


@pytest.mark.parametrize(
    "path",
    [
        f"/folder/nobody/nobody.vmdk{QUERY}",
        "/folder/here/here.vmdk?dcPath=DC1&dsName=datastore1",
        "/folder/here/here.vmdk?dcPath=DC0&dsName=datastore2",
        "/folder/here/here.vmdk",
        f"/folder/../ca.pem{QUERY}",
        f"/folder/%2e%2e/server.key{QUERY}",
        f"/folder/here{QUERY}",
        "/elsewhere",
    ],
)
async def test_what_is_not_on_the_datastore_is_not_found(lab: LabClient, instance: Any, path: str) -> None:
    await lab.add_vm("here", [512])
    assert get(lab, path, cookie_of(instance))[0] == 404


async def test_reading_fails_by_order(lab: LabClient, instance: Any) -> None:
    path, data = await image(lab, "failing")
    cookie = cookie_of(instance)
    for fault, status in (("401", 401), ("500", 500)):
        await lab.inject_fault("GET /folder", fault)
        assert get(lab, path, cookie)[0] == status
    await lab.inject_fault("GET /folder", "drop")
    with pytest.raises(http.client.IncompleteRead):
        get(lab, path, cookie)
    assert get(lab, path, cookie)[2] == data


async def test_by_order_a_range_is_ignored(lab: LabClient, instance: Any) -> None:
    path, data = await image(lab, "ignored")
    ranged = {**cookie_of(instance), "Range": "bytes=512-1023"}
    await lab.inject_fault("GET /folder", "whole")
    status, _, body = get(lab, path, ranged)
    assert (status, body) == (200, data)
    status, _, body = get(lab, path, ranged)
    assert (status, body) == (206, data[512:1024])


async def test_many_readers_are_served_at_once(lab: LabClient, instance: Any) -> None:
    """Each of eight connections is in the middle of its file while the others read theirs."""
    capacity = 24 << 20  # more than sockets buffer
    path, data = await image(lab, "many", capacity)
    cookie = cookie_of(instance)
    with contextlib.ExitStack() as stack:
        answers = []
        for _ in range(8):
            connection = stack.enter_context(https(lab))
            connection.request("GET", path, headers=cookie)
            answer = connection.getresponse()
            assert answer.read(1000) == data[:1000]
            answers.append(answer)
        assert instance.CurrentTime()  # the API answers meanwhile
        for answer in reversed(answers):
            digest = hashlib.sha256(data[:1000])
            while piece := answer.read(1 << 20):
                digest.update(piece)
            assert digest.digest() == hashlib.sha256(data).digest()


async def test_rule_10_two_nbdkits_read_frozen_disks_while_the_guest_writes(
    lab: LabClient, instance: Any, short_tmp: Path
) -> None:
    capacity = (8 << 20) + 512
    vm = await lab.add_vm("two readers", [capacity, capacity])
    frozen = {}
    for key in vm.disks:
        frozen[key] = random.Random(key).randbytes(capacity)
        await lab.guest_write(vm.name, key, 0, frozen[key])
    take_snapshot(machine_of(instance, vm))
    for key in vm.disks:
        await lab.guest_write(vm.name, key, 0, bytes(5000))
    writing = asyncio.create_task(_write_on(lab, vm.name, capacity))
    try:
        read = await asyncio.gather(
            *(
                _read_by_nbdkit(lab, short_tmp, f"two readers{suffix}", cookie_of(instance)["Cookie"])
                for suffix in ("", "_1")
            )
        )
    finally:
        writing.cancel()
        written = await asyncio.gather(writing, return_exceptions=True)
    assert isinstance(written[0], asyncio.CancelledError)
    assert read == [frozen[2000], frozen[2001]]
    for key in vm.disks:
        assert await lab.guest_read(vm.name, key, 0, capacity) != frozen[key]


async def _write_on(lab: LabClient, name: str, capacity: int) -> None:
    """Until it is cancelled."""
    chance = random.Random(7)
    while True:
        for key in (2000, 2001):
            await lab.guest_write(name, key, chance.randrange(capacity - 5000), chance.randbytes(5000))


async def _read_by_nbdkit(lab: LabClient, directory: Path, file: str, cookie: str) -> bytes:
    quoted = urllib.parse.quote(file)
    folder = urllib.parse.quote("two readers")
    reading, writing = os.pipe()
    os.write(writing, cookie.encode())
    os.close(writing)
    target = directory / f"{file}.raw"
    try:
        child = await asyncio.create_subprocess_exec(
            *process.dying_with_parent(["nbdkit", "--readonly", "--unix=-", "curl"]),
            f"url=https://{lab.host}:{lab.port}/folder/{folder}/{quoted}-flat.vmdk{QUERY}",
            f"cainfo={lab.ca_file}",
            f"cookie=-{reading}",
            "--run",
            f"nbdcopy --request-size=262144 \"$uri\" '{target}'",
            pass_fds=[reading],
        )
    finally:
        os.close(reading)
    try:
        async with asyncio.timeout(60):
            assert await child.wait() == 0
    finally:
        await process.stop(child, grace_s=3)
    return target.read_bytes()
