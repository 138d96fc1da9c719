# SPDX-License-Identifier: Apache-2.0
"""Connections that remember what was asked of them and answer in any order, with errors on order."""

from __future__ import annotations

import contextlib
import os
import random
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from sendense_agent.datapath.mover import engine, turn

EIO, GARBAGE = 5, 0xEE


class Error(Exception):
    """As nbd.Error."""

    string = "said by the recording handle"


@dataclass
class Request:
    kind: str
    offset: int
    length: int
    finish: Callable[[int], None]
    """Takes the error number."""


@dataclass
class World:
    """A source disk, a target disk behind several connections, and what may go wrong."""

    image: bytes
    target: bytearray
    dice: random.Random
    fail: Callable[[Request], bool] = lambda request: False
    refuse: str = ""
    """Kind of request that cannot even be sent."""
    durable: bytearray = field(default_factory=bytearray)
    """What a crash of the server would leave: only what was written before a flush was sent, and flushed."""
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    reading_bytes: int = 0
    most_reading_bytes: int = 0

    def __post_init__(self) -> None:
        self.durable = bytearray(self.target)
        self.handles: list[Handle] = []
        self.eagerness = self.dice.choice([0.0, 0.2, 0.9])


class Handle:
    """One connection; requests end in any order, some at once while the next one is sent."""

    world: World

    def __init__(self) -> None:
        self.is_source = not self.world.handles
        self.world.handles.append(self)
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self._pending: list[Request] = []
        self._acknowledged: list[tuple[int, bytes]] = []
        """Written on this connection, and not yet part of a flush that was sent."""
        self.dead = False

    def set_export_name(self, name: str) -> None:
        pass

    def aio_connect_unix(self, socket: str) -> None:
        pass

    def aio_is_connecting(self) -> bool:
        return False

    def get_size(self) -> int:
        return len(self.world.image)

    def aio_is_dead(self) -> bool:
        return self.dead

    def aio_is_closed(self) -> bool:
        return False

    def aio_get_fd(self) -> int:
        return self._event

    def aio_get_direction(self) -> int:
        return 1

    def aio_notify_read(self) -> None:
        os.eventfd_read(self._event)
        self._finish(self.world.dice.randint(1, 3))
        if self._pending:
            os.eventfd_write(self._event, 1)

    def shutdown(self) -> None:
        raise Error  # the hub closed it first

    def close(self) -> None:
        os.close(self._event)

    def _finish(self, count: int) -> None:
        for _ in range(min(count, len(self._pending))):
            request = self._pending.pop(self.world.dice.randrange(len(self._pending)))
            request.finish(EIO if self.world.fail(request) else 0)

    def _ask(self, request: Request) -> None:
        world = self.world
        if request.kind == world.refuse:
            raise Error
        world.asked.append((request.kind, request.offset, request.length))
        self._pending.append(request)
        os.eventfd_write(self._event, 1)
        if world.dice.random() < world.eagerness:
            self._finish(1)  # libnbd may go on with its work in any call

    def aio_pread(self, into: Any, offset: int, completed: Any) -> None:
        world, length = self.world, len(into)
        world.reading_bytes += length
        world.most_reading_bytes = max(world.most_reading_bytes, world.reading_bytes)

        def finish(error: int) -> None:
            world.reading_bytes -= length
            into[:] = bytes([GARBAGE]) * length if error else world.image[offset : offset + length]
            completed(types.SimpleNamespace(value=error))

        self._ask(Request("read", offset, length, finish))

    def aio_pwrite(self, data: Any, offset: int, completed: Any) -> None:
        sent = bytes(data)

        def finish(error: int) -> None:
            assert bytes(data) == sent, "the buffer was used for something else before its write was done"
            self._write(error, offset, sent, completed)

        self._ask(Request("write", offset, len(sent), finish))

    def aio_zero(self, length: int, offset: int, completed: Any) -> None:
        def finish(error: int) -> None:
            self._write(error, offset, bytes(length), completed)

        self._ask(Request("zero", offset, length, finish))

    def aio_flush(self, completed: Any) -> None:
        covered, self._acknowledged = self._acknowledged, []

        def finish(error: int) -> None:
            if not error:
                for offset, data in covered:
                    self.world.durable[offset : offset + len(data)] = data
            completed(types.SimpleNamespace(value=error))

        self._ask(Request("flush", 0, 0, finish))

    def _write(self, error: int, offset: int, data: bytes, completed: Any) -> None:
        if not error:
            self.world.target[offset : offset + len(data)] = data
            self._acknowledged.append((offset, data))
        completed(types.SimpleNamespace(value=error))


@contextlib.contextmanager
def handles_of(world: World, base: type[Handle] = Handle) -> Iterator[None]:
    """The engine opens these connections, the first to the source."""
    kind = type("NBD", (base,), {"world": world})
    fake = types.SimpleNamespace(NBD=kind, Error=Error, AIO_DIRECTION_READ=1, AIO_DIRECTION_WRITE=2)
    with pytest.MonkeyPatch.context() as patch:
        for module in (engine, turn):
            patch.setattr(module, "nbd", fake)
        try:
            yield
        finally:
            for handle in world.handles:
                handle.close()
