"""What is around a tail and its lanes, as models: a producer's batch, and the usage service by its real rule of marks."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.consumer import marks
from shared.events.requests import LogClosed, decode_request


class SmallBatch:
    """As much of aiokafka's batch builder as a lane uses."""

    def __init__(self, capacity: int) -> None:
        self.records: list[bytes] = []
        self._capacity = capacity

    def append(self, *, value: bytes, **_: object) -> object | None:
        if len(self.records) == self._capacity:
            return None
        self.records.append(value)
        return self


@dataclass
class UsagePartition:
    """One partition at the usage service."""

    mark: marks.Mark = marks.START
    closed: bool = False
    next_offset: int = 0
    taken: list[int] = field(default_factory=list)

    def consume(self, value: bytes) -> None:
        event = decode_request(value)
        if event.type == LogClosed.TYPE:
            self.mark = marks.close(self.mark, event.data.sequence, event.data.previous)
            self.closed = True
            return
        new, self.mark = marks.take(self.mark, event.data.sequence, event.data.previous)
        if new:
            self.taken.append(event.data.sequence)
