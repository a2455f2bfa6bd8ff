"""The request log: what a serving process writes ahead of its answers, one log for each start of the process.

A log is a directory named by a random 128-bit id with segment files, named by their first ordinal, and a file `lock`
that its writer holds (flock) as long as it lives. Nothing is appended after that, so nothing is ever cut or reused: an
incomplete frame at the end of an ended log is its end. Reading is in `reader`, the limiter's fold of logs in `snapshot`, the
format in `format`, the sync in `sync`: apart because different processes use them.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from services.edge import clock
from services.edge.clock import boot_id
from services.edge.disk import sync_directory
from services.edge.requestlog import slots
from services.edge.requestlog.format import (
    FORMAT,
    HEADER,
    NOTE,
    RECORD,
    Header,
    Note,
    Partitions,
    Record,
    encode,
    pack,
    segment_name,
)
from services.edge.requestlog.room import Room
from services.edge.requestlog.sync import Syncer

__all__ = ["Header", "LogFailed", "Note", "Record", "RequestLog"]

SEGMENT_BYTES = 64 * 1024 * 1024
_STALE_NS = 600 * clock.SECOND
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC


class LogFailed(Exception):  # noqa: N818 - a state, not a mistake
    """The log has ended because it could not be written or synced.

    `unwritten` has what was appended but is not in it, in order: a new log may take it over (`RequestLog.adopt`). All
    else that was appended is in the log and will be counted.
    """

    def __init__(self, reason: str, unwritten: Iterable[Record | Note]) -> None:
        super().__init__(reason)
        self.unwritten = tuple(unwritten)


class RequestLog:
    """The writer. Made by `open`, used by one thread, ended by `close` or by the first failure."""

    def __init__(self, path: Path, syncer: Syncer, fd: int, size: int, header: Header, segment_bytes: int) -> None:
        self.path = path
        self.id = header.log_id
        self._syncer = syncer
        self._fd = fd
        self._size = size
        self._header = header
        self._segment_bytes = segment_bytes
        self._ended = False
        self._closing = False
        self._rolls: Header | None = None
        self._next = 0
        self._lasts = list(header.lasts)
        self._partitions = Partitions(header.partitions)
        self._frames: list[bytes] = []
        self._pending: list[Record | Note] = []

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        edge_id: str,
        partitions: int,
        sync_interval: float = 0.05,
        segment_bytes: int = SEGMENT_BYTES,
        budget: int = 0,
    ) -> RequestLog:
        """Begins a new log in `directory` (made if missing). Raises `LogFailed` when that can't be done.

        `sync_interval` is in seconds; 0 syncs in each `flush`. `budget`: bytes for all logs there, 0: what the disk has.
        Blocks for some syncs to disk.
        """
        log_id = secrets.token_hex(16)
        header = _header(log_id, edge_id, partitions, 0, [-1] * partitions)
        # A log gets its name when its lock is held and its header is there, so that none is seen without.
        hidden, path = directory / f".{log_id}", directory / log_id
        open_files: list[int] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
            room = Room(directory, budget)
            if lacking := room.lacking(to_begin=True):
                raise OSError(errno.ENOSPC, lacking)
            _clear_leftovers(directory)
            hidden.mkdir()
            size = _begin(hidden, header, open_files)
            hidden.rename(path)
            sync_directory(directory)
        except OSError as error:
            for fd in open_files:
                os.close(fd)
            shutil.rmtree(hidden, ignore_errors=True)
            raise LogFailed(f"a new log could not be made: {error}", ()) from error
        lock, fd = open_files
        return cls(path, Syncer(path, lock, fd, sync_interval, room), fd, size, header, segment_bytes)

    def append(self, record: Record) -> None:
        """Buffers a record; it is in the log when `flush` has returned."""
        self.adopt((record,))

    def adopt(self, unwritten: Iterable[Record | Note]) -> None:
        """Buffers records, also those that another log, that failed, has not taken; and notes of admissions whose requests are
        still open: their records will have `noted` set.
        """
        frames, pending, lasts, partitions = self._frames, self._pending, self._lasts, self._partitions
        for item in unwritten:
            if isinstance(item, Record):
                ordinal = self._next
                frames.append(pack(RECORD, ordinal, encode(item)))
                self._next = ordinal + 1
                lasts[partitions[item.key_id]] = ordinal
            else:
                frames.append(pack(NOTE, 0, encode(item)))
            pending.append(item)

    def flush(self) -> None:
        """Writes all that is buffered with one write(2): from then on it outlives the process.

        Raises `LogFailed` when that fails or a sync has failed before; the log has then ended. With `sync_interval` 0
        also when this very sync fails: what was buffered is in the log, but may not outlive the machine. A log for which
        there is no room any more ends so too: with what was buffered, for there is a reserve.
        """
        if self._ended or self._syncer.failure is not None:
            raise self._end(f"the log has ended: {self._syncer.failure or 'closed'}", 0)
        if not self._frames:
            return
        beginning = b""
        try:
            if self._rolls is not None:
                beginning = self._roll(self._rolls)
            data = b"".join((beginning, *self._frames))
            written = os.write(self._fd, data)
        except OSError as error:
            raise self._end(f"write: {error}", len(beginning)) from error
        if written < len(data):
            raise self._end(f"write: {written} of {len(data)} bytes", len(beginning))
        self._taken(written)

    def close(self) -> None:
        """Flushes, syncs, ends the log. Raises `LogFailed` when that fails. A log that has ended is left as it is."""
        if self._ended:
            return
        self._closing = True
        self.flush()
        self._ended = True
        self._syncer.end(wait=True)
        if self._syncer.failure is not None:
            raise LogFailed(f"sync: {self._syncer.failure}", ())

    def _taken(self, written: int) -> None:
        self._size += written
        self._frames.clear()
        self._pending.clear()
        self._syncer.wrote()
        if self._syncer.failure is not None:
            raise self._end(f"sync: {self._syncer.failure}", 0)
        if self._syncer.lacking and not self._closing:
            raise self._end(self._syncer.lacking, 0)
        if self._size >= self._segment_bytes and self._next > self._header.first:
            before = self._header
            self._rolls = _header(before.log_id, before.edge_id, before.partitions, self._next, self._lasts)

    def _roll(self, header: Header) -> bytes:
        # The file is made when there is something to write to it, together with its header.
        fd = os.open(self.path / segment_name(header.first), _NEW, 0o600)
        self._syncer.follow(fd)
        self._fd, self._size, self._header, self._rolls = fd, 0, header, None
        return pack(HEADER, header.first, encode(header))

    def _end(self, reason: str, beginning: int) -> LogFailed:
        # What the file has grown by was written, whatever write(2) said; a frame cut short was not.
        unwritten = self._pending
        if not self._ended:
            grown = os.fstat(self._fd).st_size - self._size - beginning
            ends = itertools.accumulate(map(len, self._frames))
            unwritten = [item for item, end in zip(self._pending, ends, strict=True) if end > grown]
            self._ended = True
            self._syncer.end(wait=False)
        self._frames.clear()
        self._pending = []
        return LogFailed(reason, unwritten)


def _header(log_id: str, edge_id: str, partitions: int, first: int, lasts: Sequence[int]) -> Header:
    boot_ns, wall_ns = clock.boot_ns(), clock.wall_ns()
    return Header(FORMAT, log_id, edge_id, boot_id(), boot_ns, wall_ns, partitions, first, tuple(lasts))


def _begin(hidden: Path, header: Header, open_files: list[int]) -> int:
    # The lock's file has a copy of the header, in case the segment's is damaged. Gives the segment's size.
    data = pack(HEADER, header.first, encode(header))
    for name in ("lock", segment_name(header.first)):
        fd = os.open(hidden / name, _NEW, 0o600)
        open_files.append(fd)
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, "the disk is full")
        os.fdatasync(fd)
    slots.prepare(hidden)
    fcntl.flock(open_files[0], fcntl.LOCK_EX)
    sync_directory(hidden)
    return len(data)


def _clear_leftovers(directory: Path) -> None:
    # What a process left that was killed while it began a log.
    for path in directory.glob(".*"):
        with suppress(OSError):
            if clock.wall_ns() - path.stat().st_mtime_ns > _STALE_NS:
                shutil.rmtree(path)
