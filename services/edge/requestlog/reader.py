"""Reading request logs, live and ended, by the agent that ships them and by the limiter's fold; deleting what is read.

A reading is a function of the files and a position, so the same part read twice, by whomever, gives the same entries
with the same ordinals and the same `previous` (`entries`). What is in a segment is never changed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from services.edge.requestlog import slots
from services.edge.requestlog.entries import Batch, Entry, Position, parse
from services.edge.requestlog.format import FORMAT, HEADER, Header, Note, Partitions, frames, is_damage, segment_name
from services.edge.requestlog.slots import Snapshot

__all__ = ["Batch", "Entry", "LogReader", "LogUnreadableError", "Position", "Snapshot", "logs"]

READ_BYTES = 1024 * 1024
_HEADER_BYTES = 64 * 1024
_LOG_NAME = re.compile(r"[0-9a-f]{32}")
_SEGMENT_NAME = re.compile(r"(\d{20})\.log")

_decode_header = msgspec.msgpack.Decoder(Header).decode


class LogUnreadableError(Exception):
    """No header of the log is left that could be read: how it is partitioned is not known."""


def logs(directory: Path) -> list[LogReader]:
    """The logs in `directory`, in no order that means anything; none if it does not exist."""
    if not directory.is_dir():
        return []
    return [LogReader(path) for path in directory.iterdir() if _LOG_NAME.fullmatch(path.name)]


class LogReader:
    """Reads one log. It keeps no position: any number of readings may go on side by side. All may raise `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self._header: Header | None = None
        self._partitions: Partitions | None = None

    @property
    def header(self) -> Header:
        """The first header that can be read. Raises `LogUnreadableError`."""
        if self._header is None:
            names = [segment_name(first) for first in self.segments()]
            headers = (_read_header(self.path / name) for name in (*names, "lock"))
            self._header = next((header for header in headers if header is not None), None)
        if self._header is None:
            raise LogUnreadableError(self.path)
        return self._header

    def segments(self) -> list[int]:
        """The first ordinals of the segments that are left, ascending."""
        names = (_SEGMENT_NAME.fullmatch(name) for name in os.listdir(self.path))  # noqa: PTH208 - on each reading
        return sorted(int(name[1]) for name in names if name)

    def ended(self) -> bool:
        """Whether the writer's process has let go of the log: nothing will be appended any more."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            # Shared, so that two who ask don't see each other.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def start(self) -> Position:
        """The beginning of what is left of the log; the snapshot's position when no segment is.

        What could be read of the records before it, which are gone, the snapshot knows, without which none was deleted. (A
        header says what was written, which may be more.)
        """
        segments, snapshot = self.segments(), slots.newest(self.path, counts=False)
        if not segments:
            return snapshot.position if snapshot else Position(0, 0, 0, self._nothing())
        first = segments[0]
        return Position(first, 0, first, (snapshot.starts.get(first) if snapshot else None) or self._nothing())

    def read(self, position: Position, limit: int = READ_BYTES) -> Batch:
        """The records from `position` on, of about `limit` bytes."""
        items, position = self.scan(position, limit)
        return Batch([item for item in items if isinstance(item, Entry)], position)

    def scan(self, position: Position, limit: int = READ_BYTES) -> tuple[list[Entry | Note], Position]:
        """Like `read`, with the notes in their places. What it gives is all of one segment, that of the new position."""
        while True:
            # Asked in this order: with a segment after it or without a writer, what is read now of this one is all.
            ended = self.ended()
            following = next((first for first in self.segments() if first > position.segment), None)
            data = _read(self.path / segment_name(position.segment), position.offset, limit)
            items, moved = parse(data or b"", position, self._placed(), growing=following is None and not ended)
            if moved.offset > position.offset:
                return items, moved
            if data is not None and len(data) == limit:
                limit *= 2
            elif following is not None:
                lost = data is not None and (data != b"" or position.ordinal not in (following, -1))
                position = Position(following, 0, following, position.lasts, position.damaged + lost)
            elif ended and data and is_damage(data):
                end = position.offset + len(data)
                return [], position._replace(offset=end, damaged=position.damaged + 1)
            else:
                return [], position

    def finished(self, position: Position) -> bool:
        """Whether the log has ended and has neither record nor note after `position`."""
        return self.ended() and self._exhausted(position)

    def snapshot(self) -> Snapshot | None:
        """The limiter's snapshot of the log; None when there is none, or none that can be read."""
        return slots.newest(self.path)

    def save(self, snapshot: Snapshot) -> None:
        """Makes this the snapshot, atomically and durably. Raises `OSError`, and the one before is then still there."""
        slots.write(self.path, snapshot)

    def delete_segment(self, segment: int) -> None:
        """Deletes a segment. `ValueError` when it may be written to yet, or when no snapshot covers its admissions."""
        segments = self.segments()
        if segment not in segments:
            return
        if segment == segments[-1] and not self.ended():
            raise ValueError(f"segment {segment} of log {self.id} is being written")
        snapshot = slots.newest(self.path, counts=False)
        if snapshot is None or not self._covers(snapshot.position, segment):
            raise ValueError(f"segment {segment} of log {self.id} is not covered by a snapshot")
        (self.path / segment_name(segment)).unlink()

    def remove(self) -> None:
        """Deletes the log with everything in it. `ValueError` when it has not ended."""
        if not self.ended():
            raise ValueError(f"log {self.id} is being written")
        # Its name goes first: half a log is never seen.
        hidden = self.path.with_name(f".{self.id}")
        self.path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _nothing(self) -> tuple[int, ...]:
        return (-1,) * self.header.partitions

    def _covers(self, position: Position, segment: int) -> bool:
        return position.segment > segment or (position.segment == segment and self._exhausted(position, segment))

    def _exhausted(self, position: Position, within: int | None = None) -> bool:
        while True:
            items, moved = self.scan(position)
            if within is not None and moved.segment != within:
                return True
            if items or moved == position:
                return not items
            position = moved

    def _placed(self) -> Partitions:
        if self._partitions is None:
            self._partitions = Partitions(self.header.partitions)
        return self._partitions


def _read(path: Path, offset: int, limit: int) -> bytes | None:
    # None: the segment is gone.
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), limit, offset)
    except FileNotFoundError:
        return None


def _read_header(path: Path) -> Header | None:
    frame = next(frames(_read(path, 0, _HEADER_BYTES) or b""), None)
    if frame is None or frame.kind != HEADER or frame.content is None:
        return None
    with suppress(msgspec.DecodeError):
        header = _decode_header(frame.content)
        return header if header.format == FORMAT else None
    return None
