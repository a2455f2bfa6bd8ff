"""What request events mean for a key's counters. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from shared.events.requests import RequestEvent

ALLOWED = "allowed"
_SMALLINT = 2**15


@dataclass(slots=True)
class Count:
    """What some request events add to a key: rows (all of them), calls (those allowed), the time of the last call."""

    owner_id: int
    rows: int = 0
    calls: int = 0
    last_used: datetime | None = None


def is_call(event: RequestEvent) -> bool:
    """A call is a request that was let through, by the proxy or for another one (authz)."""
    return event.data.decision == ALLOWED


def count(events: Iterable[RequestEvent]) -> dict[int, Count]:
    """By key, ascending, what the events add. `ValueError` for one that no edge can have written."""
    counts: dict[int, Count] = {}
    for event in events:
        _check(event)
        data = event.data
        held = counts.get(data.key_id)
        if held is None:
            held = counts[data.key_id] = Count(data.owner_id)
        held.rows += 1
        if data.decision == ALLOWED:
            held.calls += 1
            if held.last_used is None or event.time > held.last_used:
                held.last_used = event.time
    return dict(sorted(counts.items()))


def _check(event: RequestEvent) -> None:
    data = event.data
    if not (data.key_id > 0 and data.owner_id > 0 and 0 <= data.status_code < _SMALLINT):
        raise ValueError(f"not a metered request: key {data.key_id}, owner {data.owner_id}, status {data.status_code}")
    if not 0 <= data.response_time < math.inf:
        raise ValueError(f"not a response time: {data.response_time}")
