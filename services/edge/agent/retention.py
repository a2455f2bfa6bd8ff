"""Deletes what is left of request logs when nobody needs it any more, and has lost records shipped again.

A segment goes when the usage service has all of it, has had it for a time (what one broker acknowledged is not durable),
and the limiter's snapshot has its admissions. An ended log keeps that snapshot until its last admission no longer
counts in any window.

When the logs take over 80 % of their room, what is stored goes at once; and if the usage service does not store, what
Kafka acknowledged over 10 minutes ago: rather lean on Kafka alone than refuse all requests soon.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import structlog

from services.edge.agent.complaint import Complaint
from services.edge.agent.shipper import Shipper
from services.edge.agent.snapshots import Snapshots
from services.edge.agent.tail import Tail
from services.edge.clock import SECOND, boot_ns, wall_ns
from services.edge.requestlog.reader import LogReader, LogUnreadableError
from services.edge.requestlog.room import Room, Taken
from services.edge.requestlog.snapshot import outlived

_EVERY = 1.0
_LOOK_EVERY = 600.0
_MARGIN_NS = 3600 * SECOND
_TIGHT = 0.8
_UNSTORED_AFTER = 600.0
_log = structlog.get_logger()


class Retention:
    """Clears up after a shipper, for as long as `run` runs. `keep`: seconds that a segment is kept after it was covered.

    `taken` is what the logs in `directory` take of their `budget` (bytes; 0: what the disk has).
    """

    def __init__(self, shipper: Shipper, snapshots: Snapshots, directory: Path, *, keep: float, budget: int) -> None:
        self._shipper = shipper
        self._snapshots = snapshots
        self._directory = directory
        self._room = Room(directory, budget)
        self._keep = keep
        self._looked: dict[str, float] = {}
        self._tight = Complaint(f"the request logs take over {_TIGHT:.0%} of their room")
        self.taken = Taken(0, 0)
        self.deleted = 0
        self.unstored = 0

    async def run(self) -> None:
        """For ever, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            self._shipper.check_lost(time.monotonic())
            tight = await self._is_tight()
            for tail in list(self._shipper.tails.values()):
                try:
                    await self._clear(tail, tight)
                except (OSError, ValueError, LogUnreadableError) as error:
                    _log.error("a request log can't be cleared", log=tail.id, error=str(error))

    async def _is_tight(self) -> bool:
        if not self._directory.is_dir():
            return False
        self.taken = await asyncio.to_thread(self._room.taken)
        if self.taken.share < _TIGHT:
            self._tight.over()
            return False
        self._tight.tell("what is stored goes at once, what Kafka acknowledged 10 minutes ago too")
        return True

    async def _clear(self, tail: Tail, tight: bool) -> None:
        now = time.monotonic()
        stored = self._covered(tail, tail.deletable(now, 0.0 if tight else self._keep))
        acknowledged = self._covered(tail, tail.expendable(now, _UNSTORED_AFTER))
        firsts = stored
        if tight and len(acknowledged) > len(stored):
            firsts = acknowledged
            self.unstored += len(acknowledged) - len(stored)
            _log.warning("segments are deleted that the usage service has not stored", log=tail.id, segments=firsts)
        if firsts:
            await asyncio.to_thread(_delete, tail.reader, firsts)
            tail.forget(firsts)
            self.deleted += len(firsts)
        elif tail.done and not tail.segments and self._due(tail.id) and await asyncio.to_thread(_over, tail.reader):
            tail.reader.remove()
            self._shipper.forget(tail.id)
            del self._looked[tail.id]

    def _covered(self, tail: Tail, firsts: list[int]) -> list[int]:
        """Those that the limiter's snapshot has."""
        return [first for first in firsts if self._snapshots.cover(tail.id, tail.segments[first].after)]

    def _due(self, log: str) -> bool:
        now = time.monotonic()
        due = now - self._looked.get(log, -_LOOK_EVERY) >= _LOOK_EVERY
        if due:
            self._looked[log] = now
        return due


def _delete(reader: LogReader, firsts: list[int]) -> None:
    for first in firsts:
        reader.delete_segment(first)


def _over(reader: LogReader) -> bool:
    if reader.segments():
        return False
    return reader.snapshot() is None or outlived(reader, boot_ns() - _MARGIN_NS, wall_ns() - _MARGIN_NS)
