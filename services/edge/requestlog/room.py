"""How much of the disk the request logs may take: a budget, and never the last of it, which others need to make room again.

The writer ends its log when the room is used up, so that nothing is served that can't be counted, and begins a new one
when there is some again; a little more, lest the two follow each other.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_RESERVE_BYTES = 64 * 1024 * 1024
_RESERVE_SHARE = 16
_MEASURE_SECONDS = 2.0
_BLOCK = 512


class Taken(NamedTuple):
    """Bytes that the request logs take, and that they may."""

    used: int
    limit: int

    @property
    def share(self) -> float:
        """How full it is, from 0 to 1 and beyond."""
        return self.used / self.limit if self.limit else 1.0


class Room:
    """The room of the request logs in `directory`, which exists. `budget` in bytes; 0: as much as the disk has.

    In any case a reserve stays free: a sixteenth of the file system, 64 MiB at most.
    """

    def __init__(self, directory: Path, budget: int = 0) -> None:
        self._directory = directory
        self._budget = budget
        self._used = 0
        self._measured = 0.0

    def lacking(self, *, to_begin: bool = False) -> str:
        """Why nothing more may be written, or no log be begun; empty when it may. Raises `OSError`.

        Cheap but for a look at all files each two seconds, if there is a budget.
        """
        free, reserve = self._disk()
        if to_begin:
            reserve += reserve // 4
        if free < reserve:
            return f"the disk is full: of the {reserve} bytes that are kept for what makes room, some are taken"
        if self._budget:
            if time.monotonic() - self._measured > _MEASURE_SECONDS:
                self._used, self._measured = _used(self._directory), time.monotonic()
            budget = self._budget - self._budget // 20 if to_begin else self._budget
            if self._used > budget:
                return f"the request logs have used up their budget of {self._budget} bytes"
        return ""

    def taken(self) -> Taken:
        """How much is taken of what there could be. Looks at all files; raises `OSError`."""
        free, reserve = self._disk()
        used = _used(self._directory)
        there = used + max(0, free - reserve)
        return Taken(used, min(self._budget, there) if self._budget else there)

    def _disk(self) -> tuple[int, int]:
        found = os.statvfs(self._directory)
        free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        return free, min(_RESERVE_BYTES, size // _RESERVE_SHARE)


def _used(directory: Path) -> int:
    total = 0
    with os.scandir(directory) as entries:
        for log in entries:
            # A log may be removed meanwhile.
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(log) as files:
                total += sum(file.stat().st_blocks for file in files) * _BLOCK
    return total
