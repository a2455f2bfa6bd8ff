"""Refusals of keys that are known: so many in a second get a row; the rest of a flood is counted by key and minute, and told
in the process's log when the minute is over.
"""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from services.edge.clock import SECOND

_ROWS_PER_SECOND = 20
_MINUTE = 60 * SECOND
# More keys than so many in one minute are counted together: what is kept stays within 50 kB, what is told within a line.
_KEYS_MAX = 500
_log = structlog.get_logger()


class Refusals:
    """Which refusals get a row, and how many did not. To be swept now and then, else a minute is told late."""

    def __init__(self) -> None:
        self._second = 0
        self._taken: dict[int, int] = {}
        self._minute = 0
        self._without_row: dict[int, int] = {}
        self._of_others = 0

    def take(self, key_id: int, boot_ns: int, wall_ns: int) -> bool:
        """Whether this refusal gets a row; else it is counted."""
        second = boot_ns // SECOND
        if second != self._second:
            self._second = second
            self._taken = {}
        taken = self._taken.get(key_id, 0)
        self._taken[key_id] = taken + 1
        if taken < _ROWS_PER_SECOND:
            return True
        self.sweep(wall_ns)
        self._count(key_id)
        return False

    def sweep(self, wall_ns: int) -> None:
        """Tells of a minute that is over."""
        minute = wall_ns // _MINUTE
        if minute != self._minute:
            self.tell()
            self._minute = minute

    def tell(self) -> None:
        """Tells what was counted since the minute began."""
        if not self._without_row:
            return
        _log.warning(
            "refusals without rows",
            minute=datetime.fromtimestamp(self._minute * 60, UTC).isoformat(timespec="minutes"),
            by_key=self._without_row,
            of_other_keys=self._of_others,
        )
        self._without_row = {}
        self._of_others = 0

    def _count(self, key_id: int) -> None:
        counted = self._without_row
        if key_id in counted or len(counted) < _KEYS_MAX:
            counted[key_id] = counted.get(key_id, 0) + 1
        else:
            self._of_others += 1
