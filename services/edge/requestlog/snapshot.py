"""The limiter's state as a projection of request logs: what a start restores, and snapshots that bound how long that takes
and let segments be deleted.

An admission is in a log as a note, or as an allowed record that was not noted before; both are counted here, once. A
snapshot is the fold of a log up to a position, never of a process's memory. Apart from the reader because only this
knows of the limiter.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.edge.clock import boot_id
from services.edge.limiter import LONGEST, Dump, Limiter
from services.edge.requestlog.format import Header, Note
from services.edge.requestlog.reader import LogReader, LogUnreadableError, Position, Snapshot, logs

_FEW = 1000


class Fold:
    """The fold of one log, from its snapshot, if it has one, onwards. Raises `LogUnreadableError`, `OSError`.

    `limiter` holds what was folded, on the boot clock of the log; of the `tail` after the snapshot only, if that is asked
    for, and then `base` has the snapshot's counts. `saved` is the position of the log's snapshot, `unsaved` how many
    records and notes were folded since.
    """

    def __init__(self, reader: LogReader, *, tail: bool = False) -> None:
        self._reader = reader
        self.limiter = Limiter()
        self._newest_ns = 0
        snapshot = reader.snapshot()
        self.saved = snapshot.position if snapshot else None
        self.unsaved = 0
        self.header = snapshot.header if snapshot else reader.header
        self.position = self.saved or reader.start()
        self.wall_offset_ns = self.header.wall_ns - self.header.boot_ns
        self._starts = dict(snapshot.starts) if snapshot else {}
        self._starts.setdefault(self.position.segment, self.position.lasts)
        self.base: Dump = snapshot.counts if snapshot and tail else {}
        if snapshot:
            self.wall_offset_ns = snapshot.wall_offset_ns
        if snapshot and not tail:
            with _collector_off():
                self.limiter.load(snapshot.counts)
                self._newest_ns = max((at for at, _ in _buckets(snapshot.counts)), default=0)

    def advance(self) -> bool:
        """Folds a piece (about 1 MiB) of what follows; False when there is no more yet."""
        items, position = self._reader.scan(self.position)
        if position.segment != self.position.segment:
            # What was read is all of the last of them. (First of all, since it may fail: the piece is then read again.)
            passed = [first for first in self._reader.segments() if self.position.segment < first <= position.segment]
            self._starts |= dict.fromkeys(passed, self.position.lasts)
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
        self.unsaved += len(items)
        return moved

    def save(self) -> Snapshot:
        """Writes the fold so far as the log's snapshot. Raises `OSError`."""
        self.limiter.forget(self._newest_ns, len(self.limiter))
        left = {self.position.segment, *self._reader.segments()}
        self._starts = {first: lasts for first, lasts in self._starts.items() if first in left}
        snapshot = Snapshot(self.header, self.position, self.wall_offset_ns, self.limiter.dump(), self._starts)
        self._reader.save(snapshot)
        self.saved, self.unsaved = self.position, 0
        return snapshot

    def shift_ns(self, now_boot_ns: int, now_wall_ns: int) -> int:
        """What takes the log's boot clock to today's: nothing in the same boot, else by way of the wall clock."""
        return _shift(self.header, self.wall_offset_ns, now_boot_ns, now_wall_ns)

    def _count(self, key_id: int, admitted_ns: int) -> None:
        self.limiter.record(key_id, admitted_ns)
        self._newest_ns = max(self._newest_ns, admitted_ns)


def snapshot(reader: LogReader, up_to: Position) -> Snapshot:
    """Folds the log at least up to a position and writes the snapshot. Raises `OSError`, `LogUnreadableError`."""
    fold = Fold(reader)
    while fold.position < up_to and fold.advance():
        pass
    return fold.save()


def restore(directory: Path, limiter: Limiter, now_boot_ns: int, now_wall_ns: int) -> list[str]:
    """Folds all logs in `directory` into `limiter`; returns the ids of those that could not be read to their end.

    Takes as long as reading the snapshots and what follows them. Admissions of another boot come to today's boot clock
    by way of the wall clock; none is taken for a future one. The agent may write snapshots and delete segments and logs
    meanwhile.
    """
    with _collector_off():
        return _restore(directory, limiter, now_boot_ns, now_wall_ns)


def _restore(directory: Path, limiter: Limiter, now_boot_ns: int, now_wall_ns: int) -> list[str]:
    unreadable = []
    for reader in logs(directory):
        try:
            fold, whole = _folded(reader)
        except FileNotFoundError:
            # Removed under this reading: nothing in it counted any more.
            continue
        except (LogUnreadableError, OSError):
            unreadable.append(reader.id)
            continue
        if not whole:
            unreadable.append(reader.id)
        shift_ns = fold.shift_ns(now_boot_ns, now_wall_ns)
        # Each of those that are loaded later costs every key that is first asked for a look.
        load = limiter.load if len(fold.base) < _FEW else limiter.load_later
        load(fold.base, shift_ns=shift_ns, now_ns=now_boot_ns)
        limiter.merge(fold.limiter, shift_ns=shift_ns, now_ns=now_boot_ns)
    return unreadable


def _folded(reader: LogReader) -> tuple[Fold, bool]:
    """The fold of a log, and whether all of it could be read."""
    while True:
        fold = Fold(reader, tail=True)
        began = fold.position.segment
        try:
            while fold.advance():
                pass
        except FileNotFoundError:
            raise
        except OSError:
            return fold, False
        # The oldest segment is deleted first: as long as this one is there, none was missing in this fold. That none is
        # left means that the snapshot which let them go is newer, or that all of them had gone before.
        newest = reader.snapshot()
        if began in reader.segments() or fold.saved == (newest.position if newest else None):
            return fold, True


@contextmanager
def _collector_off() -> Iterator[None]:
    """Without the cyclic garbage collector: it would go through what is being loaded again and again, in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
