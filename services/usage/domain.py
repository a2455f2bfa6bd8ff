"""What request events mean for a key's counters. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from shared.events.requests import RequestEvent


@dataclass(slots=True)
class Count:
    """What some request events add to a key: rows (all of them), calls, and the time of the last call."""

    owner_id: int
    rows: int = 0
    calls: int = 0
    last_used: datetime | None = None


def count(counts: dict[int, Count], events: Iterable[RequestEvent]) -> None:
    """Adds to each key's what the events add."""
    for event in events:
        data = event.data
        held = counts.get(data.key_id)
        if held is None:
            held = counts[data.key_id] = Count(data.owner_id)
        held.rows += 1
        if data.is_call:
            held.calls += 1
            if held.last_used is None or event.time > held.last_used:
                held.last_used = event.time
