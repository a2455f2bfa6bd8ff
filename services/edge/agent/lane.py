"""A lane: what of the request logs is to go into one partition, in order, until Kafka has acknowledged it."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import groupby

from services.edge.agent.tail import Item
from shared.kafka import Batch


class Lane:
    """The records for one partition that Kafka does not have yet, in order, and the bytes of their values."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.filled = asyncio.Event()
        self.end = 0
        self.bytes = 0
        self._waiting: deque[Item] = deque()
        self._flying: list[Item] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._flying)

    @property
    def oldest_ms(self) -> int | None:
        """The time of the first record (ms since 1970)."""
        first = self._flying or self._waiting
        return first[0].timestamp_ms if first else None

    def put(self, item: Item) -> None:
        """Adds a record at the end."""
        self._waiting.append(item)
        self.bytes += len(item.value)
        self.filled.set()

    def load(self, batch: Batch) -> bool:
        """Puts as many as fit into the batch; False when there is none."""
        waiting, flying = self._waiting, self._flying
        append = batch.append
        while waiting:
            item = waiting[0]
            if item.generation == item.tail.generation:
                if append(timestamp=item.timestamp_ms, key=item.key, value=item.value, headers=item.headers) is None:
                    break
                flying.append(item)
            else:
                self.bytes -= len(item.value)
            waiting.popleft()
        if not waiting:
            self.filled.clear()
        return bool(flying)

    def land(self, offset: int) -> int:
        """Kafka has the batch, from this offset on; tells the tails, and returns how many records it was."""
        flown = self._flying
        self._flying = []
        self.bytes -= sum([len(item.value) for item in flown])
        self.end = offset + len(flown)
        at = offset
        for (tail, generation), group in groupby(flown, key=lambda item: (item.tail, item.generation)):
            items = list(group)
            at += len(items)
            if generation == tail.generation:
                tail.acknowledged(self.number, len(items), items[-1].ordinal, at)
        return len(flown)

    def restore(self) -> None:
        """The batch that was on its way failed, or nobody knows: it goes first again."""
        self._waiting.extendleft(reversed(self._flying))
        self._flying = []
        if self._waiting:
            self.filled.set()
