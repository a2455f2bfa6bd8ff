"""Deletes what is left of request logs when nobody needs it any more, and has lost records shipped again.

A segment goes when the usage service has all of it, has had it for a time (what one broker acknowledged is not durable),
and the limiter's snapshot has its admissions. An ended log keeps that snapshot until its last admission no longer
counts in any window.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from services.edge.agent.shipper import Shipper
from services.edge.agent.snapshots import Snapshots
from services.edge.agent.tail import Tail
from services.edge.clock import SECOND, boot_ns, wall_ns
from services.edge.requestlog.reader import LogReader, LogUnreadableError
from services.edge.requestlog.snapshot import outlived

_EVERY = 1.0
_LOOK_EVERY = 600.0
_MARGIN_NS = 3600 * SECOND
_log = structlog.get_logger()


class Retention:
    """Clears up after a shipper, for as long as `run` runs. `keep`: seconds that a segment is kept after it was covered."""

    def __init__(self, shipper: Shipper, snapshots: Snapshots, keep: float) -> None:
        self._shipper = shipper
        self._snapshots = snapshots
        self._keep = keep
        self._looked: dict[str, float] = {}
        self.deleted = 0

    async def run(self) -> None:
        """For ever, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            self._shipper.check_lost(time.monotonic())
            for tail in list(self._shipper.tails.values()):
                try:
                    await self._clear(tail)
                except (OSError, ValueError, LogUnreadableError) as error:
                    _log.error("a request log can't be cleared", log=tail.id, error=str(error))

    async def _clear(self, tail: Tail) -> None:
        firsts = tail.deletable(time.monotonic(), self._keep)
        firsts = [first for first in firsts if self._snapshots.cover(tail.id, tail.segments[first].after)]
        if firsts:
            await asyncio.to_thread(_delete, tail.reader, firsts)
            tail.forget(firsts)
            self.deleted += len(firsts)
        elif tail.done and not tail.segments and self._due(tail.id) and await asyncio.to_thread(_over, tail.reader):
            tail.reader.remove()
            self._shipper.forget(tail.id)
            del self._looked[tail.id]

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
