"""A loop on which time passes only while nobody has anything to do: minutes of waiting take milliseconds."""

from __future__ import annotations

import asyncio
import heapq
from typing import Any

from typing_extensions import override

_TURNS_MAX = 100_000


class VirtualLoop(asyncio.SelectorEventLoop):
    """For tests that talk to nobody outside of their process."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._turns = 0

    @override
    def time(self) -> float:
        return self._now

    @override
    def close(self) -> None:
        if rest := asyncio.all_tasks(self):
            for task in rest:
                task.cancel()
            self.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        super().close()

    def _run_once(self) -> None:
        loop: Any = self
        scheduled = loop._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
            loop._timer_cancelled_count -= 1
        self._turns += 1
        if scheduled and not loop._ready:
            self._now = max(self._now, scheduled[0].when())
            self._turns = 0
        assert self._turns < _TURNS_MAX, "it works without end, and time does not pass"
        super()._run_once()  # type: ignore[misc]
