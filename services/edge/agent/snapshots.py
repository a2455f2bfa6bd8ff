"""Keeps each request log's snapshot near its end, so that a start folds little of it, and so that segments may go.

Beside the shipper, because it goes on when Kafka does not: what an outage leaves unshipped must not be folded at a start.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.edge.agent.complaint import Complaint
from services.edge.requestlog.reader import LogReader, LogUnreadableError, Position, logs
from services.edge.requestlog.snapshot import Fold

_RECORDS = 100_000
"""Folding so many takes a quarter of a second, and a second if each is of another key."""
_EVERY = 1.0


class Snapshots:
    """Folds all request logs in a directory, for as long as `run` runs; one piece of each in turn, so that none waits long.

    A snapshot is made after `records` records and notes, at the end of a segment, and at a log's end.
    """

    def __init__(self, directory: Path, *, records: int = _RECORDS) -> None:
        self._directory = directory
        self._records = records
        self._folds: dict[str, Fold] = {}
        self._saved: dict[str, Position] = {}
        self._complaint = Complaint("a request log's snapshot can't be made")

    async def run(self) -> None:
        """For ever, until cancelled."""
        while True:
            busy = await self.turn()
            await asyncio.sleep(0 if busy else _EVERY)

    async def turn(self) -> bool:
        """Folds a piece of each log; whether any had one. (In a thread, piece by piece: the agent's loop must not wait.)"""
        found = {reader.id: reader for reader in await asyncio.to_thread(logs, self._directory)}
        for gone in self._saved.keys() - found.keys():
            del self._saved[gone]
            self._folds.pop(gone, None)
        busy, failed = False, False
        for reader in found.values():
            if reader.id in self._saved and reader.id not in self._folds:
                continue
            try:
                busy |= await asyncio.to_thread(self._advance, reader)
            except FileNotFoundError:
                self._folds.pop(reader.id, None)
            except (LogUnreadableError, OSError) as error:
                failed = True
                self._complaint.tell(error)
        if not failed:
            self._complaint.over()
        return busy

    def cover(self, log: str, position: Position) -> bool:
        """Whether a snapshot of the log has everything before the position."""
        saved = self._saved.get(log)
        return saved is not None and saved[:2] >= position[:2]

    def _advance(self, reader: LogReader) -> bool:
        fold = self._folds.get(reader.id)
        if fold is None:
            fold = self._folds[reader.id] = Fold(reader)
        # Asked first: what a process wrote before it let go of the log is read after.
        ended = reader.ended()
        moved = fold.advance()
        at_rest = not moved and (fold.saved is None or ended or fold.saved.segment != fold.position.segment)
        if fold.saved != fold.position and (fold.unsaved >= self._records or at_rest):
            fold.save()
        if fold.saved is not None:
            self._saved[reader.id] = fold.saved
        if ended and not moved:
            del self._folds[reader.id]
        return moved
