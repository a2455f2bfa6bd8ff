"""A loop on which time passes only while nobody has anything to do: minutes of waiting take milliseconds."""

from __future__ import annotations

import asyncio
import heapq
from typing import Any

from typing_extensions import override


class VirtualLoop(asyncio.SelectorEventLoop):
    """For tests that talk to nobody outside of their process."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    @override
    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        loop: Any = self
        scheduled = loop._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
            loop._timer_cancelled_count -= 1
        if scheduled and not loop._ready:
            self._now = max(self._now, scheduled[0].when())
        super()._run_once()  # type: ignore[misc]
