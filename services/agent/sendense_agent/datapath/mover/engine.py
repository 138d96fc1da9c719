# SPDX-License-Identifier: Apache-2.0
"""The copy itself: many requests in flight, none of whose outcomes goes unread.

A buffer is written only after its read has completed without an error; the first error of any request ends
the copy. A checkpoint holds the pieces whose writes were acknowledged before its flush was sent, and is given
out when the flush has been acknowledged.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator

import nbd

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.mover import comparing, pieces
from sendense_agent.datapath.mover.allowance import Allowance
from sendense_agent.datapath.mover.comparing import RECORD, Work
from sendense_agent.datapath.mover.mismatches import Mismatches
from sendense_agent.datapath.mover.turn import POLL_MS, blocks, turn
from sendense_agent.datapath.order import CopyOrder
from sendense_common.errors import SendenseError

_PROGRESS_EVERY_S = 0.25
_MOST_RECORDS = 20_000
# An NBD server speaks first; one that does not is busy with other clients, or hangs.
_HANDSHAKE_WITHIN_S = 60.0

# Of digests that are read at once: of 18 GiB of a disk when its records are as long as they can be.
_DIGESTS_BYTES = 18_724 * RECORD.size

Tell = Callable[[pb.RunBackupResponse], None]


class CopyEngine:
    """Copies one disk, in the thread that calls `run`."""

    def __init__(self, order: CopyOrder, tell: Tell, wire_bytes: Callable[[], int]) -> None:
        """Args: tell: takes events; wire_bytes: sent on the network so far."""
        self._order = order
        self._tell = tell
        self._wire_bytes = wire_bytes
        self._progress = pb.DiskProgress(disk_key=order.disk_key)
        self._told_at = 0.0
        self._failure: SendenseError | None = None
        self._buffers = [
            memoryview(bytearray(pieces.PIECE_BYTES))
            for _ in range(max(1, order.in_flight_bytes // pieces.PIECE_BYTES))
        ]
        self._in_flight = 0
        self._arrived: collections.deque[tuple[memoryview, Work]] = collections.deque()
        self._acked: list[pb.LedgerRecord] = []
        self._acked_bytes = 0
        self._flushing: list[pb.LedgerRecord] | None = None
        self._flushes_left = 0
        self._flushed_at = time.monotonic()
        self._flush_sent_at = 0.0
        self.flush_s = 0.0
        """Between flushes and their answers, all in all; the copy goes on meanwhile."""
        self._mismatches = Mismatches(order.disk_key, tell)
        self._next_target = 0
        self._allowance = Allowance()
        self._stop = False
        self.waited_for_flush_s = 0.0
        """Of `flush_s`, how long nothing else went on."""
        self._source: nbd.NBD
        self._targets: list[nbd.NBD] = []

    def limit(self, bytes_per_second: int) -> None:
        """May be called from another thread; 0 is no limit."""
        self._allowance.set(bytes_per_second)

    def stop(self) -> None:
        """May be called from another thread: reads no more; `run` ends with what was read by then."""
        self._stop = True

    def run(self) -> pb.DiskProgress:
        """Copies everything, flushes, and tells that the disk is done (unless it was stopped before it was).

        Returns:
            Its counters in the end.

        Raises:
            SendenseError: SOURCE_READ_FAILED, TARGET_WRITE_FAILED, DISK_MISMATCH.
        """
        began = time.monotonic()
        order = self._order
        self._source = self._connect(
            str(order.source.socket), order.source.export_name, Reason.REASON_SOURCE_READ_FAILED
        )
        self._targets = [
            self._connect(str(order.local_socket), order.export_name, Reason.REASON_TARGET_WRITE_FAILED)
            for _ in range(order.connections)
        ]
        self._flushed_at = time.monotonic()
        try:
            complete = self._copy(self._compared() if order.digests_export_name else self._planned())
        except comparing.DigestsError as error:
            reason = Reason.REASON_TARGET_WRITE_FAILED
            raise self._error(reason, "gave digests that cannot be", str(error)) from error
        finally:
            self._mismatches.tell()
        self._tell_progress(final=True)
        if complete:
            done = pb.DiskDone(progress=self._progress)
            done.duration.FromNanoseconds(int((time.monotonic() - began) * 1e9))
            self._tell(pb.RunBackupResponse(disk_done=done))
        for handle in (self._source, *self._targets):
            with contextlib.suppress(nbd.Error):  # all is flushed; the hub may have closed it already
                handle.shutdown()
        return self._progress

    def _connect(
        self, socket: str, export_name: str, reason: Reason.ValueType, *, whole_disk: bool = True
    ) -> nbd.NBD:
        handle = nbd.NBD()
        handle.set_export_name(export_name)
        deadline = time.monotonic() + _HANDSHAKE_WITHIN_S
        try:
            handle.aio_connect_unix(socket)
            while handle.aio_is_connecting():
                if time.monotonic() >= deadline:
                    raise self._error(
                        reason, "cannot be opened", f"no NBD handshake within {_HANDSHAKE_WITHIN_S:.0f} s"
                    )
                handle.poll(POLL_MS)
                self._tell_progress()
        except nbd.Error as error:
            raise self._error(reason, "cannot be opened", error.string) from error
        size = handle.get_size()
        if whole_disk and size != self._order.capacity_bytes:
            raise SendenseError(
                Reason.REASON_DISK_MISMATCH,
                f"{self._order.label} has {self._order.capacity_bytes} bytes, but {socket} shows {size}",
                disk=self._order.disk_key,
            )
        return handle

    def _planned(self) -> Iterator[Work]:
        """What is known without looking: zeroes, then reads, then what is audited."""
        order = self._order
        yield from (Work(offset, length, zero=True) for offset, length in pieces.zeroes(order.zero))
        yield from (Work(offset, length) for offset, length in pieces.reads(order.read))
        if order.audit:
            changed = order.read.union(order.zero).union(order.kept)
            yield from comparing.audit(order.audit, changed, order.capacity_bytes)

    def _compared(self) -> Iterator[Work]:
        """All that is in use or was data."""
        order = self._order
        handle = self._connect(
            str(order.digests_socket),
            order.digests_export_name,
            Reason.REASON_TARGET_WRITE_FAILED,
            whole_disk=False,
        )
        before = comparing.digests(self._blocks(handle), order.capacity_bytes)
        yield from comparing.work(order.read, before, order.capacity_bytes, order.kept)
        with contextlib.suppress(nbd.Error):
            handle.shutdown()

    def _blocks(self, handle: nbd.NBD) -> Iterator[bytes]:
        """An export from its beginning; the copy waits meanwhile."""
        try:
            yield from blocks(handle, _DIGESTS_BYTES, self._tell_progress)
        except nbd.Error as error:
            raise self._error(Reason.REASON_TARGET_WRITE_FAILED, "gives no digests", error.string) from error

    def _copy(self, todo: Iterator[Work]) -> bool:
        """Whether all of it was copied."""
        item, complete = next(todo, None), True
        while (
            item is not None or self._in_flight or self._arrived or self._acked or self._flushing is not None
        ):
            if self._stop and item is not None:
                item, complete = None, False
            while item is not None and self._may_submit(item):
                if item.zero:
                    self._zero(item.offset, item.length)
                else:
                    self._read(item)
                item = next(todo, None)
            while self._arrived:
                self._take(*self._arrived.popleft())
            copied = item is None and not self._in_flight
            if self._flushing is None and self._acked and (copied or self._checkpoint_due()):
                self._flush()
            self._wait()
            self._tell_progress()
            if self._failure is not None:
                raise self._failure
        return complete

    def _wait(self) -> None:
        """Waits for something to go on; time in which nothing did but a flush is counted."""
        others, began = self._in_flight - self._flushes_left, time.monotonic()
        flushing = self._flushing is not None
        sent, gone = turn([self._source, *self._targets], 0 if self._arrived else POLL_MS)
        for handle, words in gone:
            source = handle is self._source
            reason = Reason.REASON_SOURCE_READ_FAILED if source else Reason.REASON_TARGET_WRITE_FAILED
            self._keep(self._error(reason, "has gone", words))
        if flushing and not sent and others == self._in_flight - self._flushes_left:
            self.waited_for_flush_s += time.monotonic() - began

    # --- requests ---

    def _may_submit(self, item: Work) -> bool:
        if item.zero:
            return self._in_flight < len(self._buffers) + len(self._targets)
        return bool(self._buffers) and self._allowance.take(item.length)

    def _read(self, item: Work) -> None:
        offset, length = item.offset, item.length
        buffer = self._buffers.pop()
        into = buffer[:length]

        def completed(error: nbd.ctypes.c_int) -> int:
            self._in_flight -= 1
            if error.value:
                self._fail(Reason.REASON_SOURCE_READ_FAILED, f"cannot be read at byte {offset}", error.value)
            else:
                self._progress.audited_bytes += length if item.audit else 0
                self._progress.read_bytes += 0 if item.audit else length
                self._arrived.append((buffer, item))
            return 1

        self._in_flight += 1
        self._submit(
            lambda: self._source.aio_pread(into, offset, completed), Reason.REASON_SOURCE_READ_FAILED, offset
        )

    def _take(self, buffer: memoryview, item: Work) -> None:
        """What was read without an error: writes what is data, and zeroes where they must be written."""
        offset = item.offset
        view = buffer[: item.length]
        for start, size in item.unused:
            view[start : start + size] = bytes(size)
        if item.sha256 and hashlib.sha256(view).digest() == item.sha256:
            self._buffers.append(buffer)  # the previous point has it
            return
        parts = list(pieces.runs(view, offset))
        pending = len(parts)
        if item.audit:
            self._mismatches.note(item, parts)
            self._progress.audit_mismatches = self._mismatches.count

        def finished() -> None:
            nonlocal pending
            pending -= 1
            if not pending:
                self._buffers.append(buffer)

        for start, size, zero in parts:
            if not zero:
                data = view[start : start + size]
                self._write(data, offset + start, finished)
            elif item.sha256 == b"":  # zeroes then and now
                self._progress.zero_bytes += 0 if item.audit else size
                finished()
            elif self._order.write_zeroes:
                self._zero(offset + start, size, finished)
            else:
                self._progress.zero_bytes += size
                self._acknowledge(pb.LedgerRecord(offset_bytes=offset + start, length_bytes=size))
                finished()

    def _write(self, data: memoryview, offset: int, finished: Callable[[], None]) -> None:
        digest = hashlib.sha256(data).digest()
        record = pb.LedgerRecord(offset_bytes=offset, length_bytes=len(data), sha256=digest)

        def completed(error: nbd.ctypes.c_int) -> int:
            self._in_flight -= 1
            if error.value:
                self._fail(
                    Reason.REASON_TARGET_WRITE_FAILED, f"cannot be written at byte {offset}", error.value
                )
            else:
                self._progress.copied_bytes += record.length_bytes
                self._acknowledge(record)
            finished()
            return 1

        target = self._target()
        self._in_flight += 1
        self._submit(
            lambda: target.aio_pwrite(data, offset, completed), Reason.REASON_TARGET_WRITE_FAILED, offset
        )

    def _zero(self, offset: int, length: int, finished: Callable[[], None] = lambda: None) -> None:
        record = pb.LedgerRecord(offset_bytes=offset, length_bytes=length)

        def completed(error: nbd.ctypes.c_int) -> int:
            self._in_flight -= 1
            if error.value:
                self._fail(
                    Reason.REASON_TARGET_WRITE_FAILED, f"cannot be zeroed at byte {offset}", error.value
                )
            else:
                self._progress.zero_bytes += length
                self._acknowledge(record)
            finished()
            return 1

        target = self._target()
        self._in_flight += 1
        self._submit(
            lambda: target.aio_zero(length, offset, completed), Reason.REASON_TARGET_WRITE_FAILED, offset
        )

    def _flush(self) -> None:
        """All that is acknowledged by now belongs to this checkpoint, nothing that comes later does."""
        self._flushing, self._acked = self._acked, []
        self._acked_bytes = 0
        self._flushes_left = len(self._targets)
        self._flush_sent_at = time.monotonic()

        def completed(error: nbd.ctypes.c_int) -> int:
            self._in_flight -= 1
            self._flushes_left -= 1
            if error.value:
                self._fail(Reason.REASON_TARGET_WRITE_FAILED, "cannot be flushed", error.value)
            elif not self._flushes_left and self._failure is None:
                self._tell_checkpoint()
            return 1

        for target in self._targets:
            self._in_flight += 1
            self._submit(functools.partial(target.aio_flush, completed), Reason.REASON_TARGET_WRITE_FAILED, 0)

    def _submit(self, request: Callable[[], object], reason: Reason.ValueType, offset: int) -> None:
        """A request that cannot even be sent is a failure like any other."""
        try:
            request()
        except nbd.Error as error:
            self._in_flight -= 1
            self._keep(self._error(reason, f"request at byte {offset} cannot be sent", error.string))

    def _target(self) -> nbd.NBD:
        self._next_target = (self._next_target + 1) % len(self._targets)
        return self._targets[self._next_target]

    # --- outcomes ---

    def _acknowledge(self, record: pb.LedgerRecord) -> None:
        if self._acked and not record.sha256 and not self._acked[-1].sha256:
            last = self._acked[-1]
            if last.offset_bytes + last.length_bytes == record.offset_bytes:
                last.length_bytes += record.length_bytes
                return
        self._acked.append(record)
        self._acked_bytes += record.length_bytes if record.sha256 else 0

    def _checkpoint_due(self) -> bool:
        return (
            self._acked_bytes >= self._order.checkpoint_bytes
            or len(self._acked) >= _MOST_RECORDS
            or time.monotonic() - self._flushed_at >= self._order.checkpoint_s
        )

    def _tell_checkpoint(self) -> None:
        assert self._flushing is not None
        self._tell(
            pb.RunBackupResponse(
                checkpoint=pb.Checkpoint(disk_key=self._order.disk_key, records=self._flushing)
            )
        )
        self._flushing = None
        self._flushed_at = time.monotonic()
        self.flush_s += self._flushed_at - self._flush_sent_at

    def _tell_progress(self, *, final: bool = False) -> None:
        if final or time.monotonic() - self._told_at >= _PROGRESS_EVERY_S:
            self._told_at = time.monotonic()
            self._progress.wire_bytes = max(self._progress.wire_bytes, self._wire_bytes())
            self._tell(pb.RunBackupResponse(progress=pb.BackupProgress(disks=[self._progress])))

    def _fail(self, reason: Reason.ValueType, what: str, number: int) -> None:
        self._keep(self._error(reason, what, os.strerror(number)))

    def _keep(self, error: SendenseError) -> None:
        if self._failure is None:  # the first cause; the rest are its consequences
            self._failure = error

    def _error(self, reason: Reason.ValueType, what: str, words: str) -> SendenseError:
        side = "the source" if reason == Reason.REASON_SOURCE_READ_FAILED else "the hub's export"
        return SendenseError(
            reason,
            f"{self._order.label}: {side} {what}: {words}",
            remedy="Mend the cause. What was flushed is kept, and the next attempt goes on from there.",
            disk=self._order.disk_key,
        )
