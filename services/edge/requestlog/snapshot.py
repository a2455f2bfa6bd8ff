"""The limiter's state as a projection of request logs: what a start restores, and snapshots that let segments be deleted.

An admission is in a log as a note, or as an allowed record that was not noted before; both are counted here, once. A
snapshot is the fold of a log up to a position, never of a process's memory. Apart from the reader because only this
knows of the limiter.
"""

from __future__ import annotations

from pathlib import Path

from services.edge.clock import boot_id
from services.edge.limiter import LONGEST, Dump, Limiter
from services.edge.requestlog.format import Header, Note
from services.edge.requestlog.reader import LogReader, LogUnreadableError, Position, Snapshot, logs


class Fold:
    """The fold of one log, from its snapshot, if it has one, onwards."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._limiter = Limiter()
        self._newest_ns = 0
        snapshot = reader.snapshot()
        self.began = snapshot.position if snapshot else None
        self.header = snapshot.header if snapshot else reader.header
        self.position = self.began or reader.start()
        self.wall_offset_ns = self.header.wall_ns - self.header.boot_ns
        if snapshot:
            self.wall_offset_ns = snapshot.wall_offset_ns
            self._limiter.load(snapshot.counts)
            self._newest_ns = max((at for at, _ in _buckets(snapshot.counts)), default=0)

    def advance(self) -> bool:
        """Folds a piece (about 1 MiB) of what follows; False when there is no more yet."""
        items, position = self._reader.scan(self.position)
        for item in items:
            if isinstance(item, Note):
                self._count(item.key_id, item.admitted_ns)
                continue
            record = item.record
            # The newest record tells best how the clocks stand to each other: the wall clock may have been set.
            self.wall_offset_ns = record.time_ns - record.admitted_ns
            if record.decision == "allowed" and not record.noted:
                self._count(record.key_id, record.admitted_ns)
        moved, self.position = position != self.position, position
        return moved

    def save(self) -> Snapshot:
        """Writes the fold so far as the log's snapshot. Raises `OSError`."""
        self._limiter.forget(self._newest_ns, len(self._limiter))
        snapshot = Snapshot(self.header, self.position, self.wall_offset_ns, self._limiter.dump())
        self._reader.save(snapshot)
        return snapshot

    def counts(self) -> Dump:
        """What `Limiter.load` takes, on the boot clock of the log."""
        return self._limiter.dump()

    def shift_ns(self, now_boot_ns: int, now_wall_ns: int) -> int:
        """What takes the log's boot clock to today's: nothing in the same boot, else by way of the wall clock."""
        return _shift(self.header, self.wall_offset_ns, now_boot_ns, now_wall_ns)

    def _count(self, key_id: int, admitted_ns: int) -> None:
        self._limiter.record(key_id, admitted_ns)
        self._newest_ns = max(self._newest_ns, admitted_ns)


def snapshot(reader: LogReader, up_to: Position) -> Snapshot:
    """Folds the log at least up to a position and writes the snapshot. Raises `OSError`, `LogUnreadableError`."""
    fold = Fold(reader)
    while fold.position < up_to and fold.advance():
        pass
    return fold.save()


def restore(directory: Path, limiter: Limiter, now_boot_ns: int, now_wall_ns: int) -> list[str]:
    """Folds all logs in `directory` into `limiter`; returns the ids of those that could not be read.

    Admissions of another boot come to today's boot clock by way of the wall clock; none is taken for a future one. The
    agent may write snapshots and delete segments and logs meanwhile.
    """
    unreadable = []
    for reader in logs(directory):
        try:
            fold = _whole(reader)
        except LogUnreadableError:
            unreadable.append(reader.id)
            continue
        except FileNotFoundError:
            # Removed under this reading: nothing in it counted any more.
            continue
        limiter.load(fold.counts(), shift_ns=fold.shift_ns(now_boot_ns, now_wall_ns), now_ns=now_boot_ns)
    return unreadable


def _whole(reader: LogReader) -> Fold:
    while True:
        fold = Fold(reader)
        while fold.advance():
            pass
        # Segments are deleted only after a newer snapshot was written: without one, none was missing in this fold.
        newest = reader.snapshot()
        if fold.began == (newest.position if newest else None):
            return fold


def outlived(reader: LogReader, now_boot_ns: int, now_wall_ns: int) -> bool:
    """Whether nothing in the log's snapshot counts any more: once it is shipped and ended, it can be removed."""
    snapshot = reader.snapshot()
    if snapshot is None:
        return False
    shift = _shift(snapshot.header, snapshot.wall_offset_ns, now_boot_ns, now_wall_ns)
    return all(at + shift + LONGEST <= now_boot_ns for at, _ in _buckets(snapshot.counts))


def _shift(header: Header, wall_offset_ns: int, now_boot_ns: int, now_wall_ns: int) -> int:
    return 0 if header.boot_id == boot_id() else wall_offset_ns - (now_wall_ns - now_boot_ns)


def _buckets(counts: Dump) -> list[tuple[int, int]]:
    return [bucket for windows in counts.values() for window in windows for bucket in window]
