"""Request logs as edges write and ship them, without edges."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shared.events.requests import LogClosed, Request, RequestEvent, RequestMetered, encode_request
from shared.kafka import Partition, Producer
from shared.partitions import partition_for


@dataclass(frozen=True)
class Written:
    """A record of a request log: where it goes, and as what."""

    partition: int
    key: bytes
    event: RequestEvent
    value: bytes

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        data = self.event.data
        named = {"source": self.event.source, "sequence": data.sequence, "previous": data.previous}
        return [(name, str(value).encode()) for name, value in named.items()]


@dataclass
class Log:
    """One start of a serving process: ordinals over all partitions, predecessors within each."""

    partitions: int = 6
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    next: int = 0
    last: dict[int, int] = field(default_factory=dict)

    def write(self, key_id: int, **data: Any) -> Written:
        """The next record: a call, unless `data` says otherwise."""
        key = b"key-%d" % key_id
        moment = data.pop("time", None) or datetime.now(UTC)
        plain: dict[str, Any] = {
            "owner_id": 1,
            "endpoint": "/api/v1/tickets",
            "route": "tickets",
            "method": "GET",
            "status_code": 200,
            "response_time": 0.015625,
            "decision": "allowed",
            "via": "proxy",
            "request_id": uuid.uuid4().hex,
        }
        return self._written(
            partition_for(key, self.partitions), key, moment, RequestMetered.TYPE, key_id=key_id, **plain | data
        )

    def close(self) -> list[Written]:
        """The closing record, for every partition; one ordinal in all."""
        end = self.next
        closing = []
        for partition in range(self.partitions):
            self.next = end
            closing.append(self._written(partition, self.id.encode(), datetime.now(UTC), LogClosed.TYPE))
        return closing

    def _written(self, partition: int, key: bytes, moment: datetime, kind: str, **data: Any) -> Written:
        sequence, previous = self.next, self.last.get(partition, -1)
        self.next, self.last[partition] = sequence + 1, sequence
        event = RequestEvent(
            id=f"{self.id}-{sequence}",
            source=self.id,
            type=kind,
            time=moment,
            data=Request(sequence=sequence, previous=previous, edge="edge-1", **data),
        )
        return Written(partition, key, event, encode_request(event))


async def ship(bootstrap: str, topic: str, records: Iterable[Written], producer: Producer | None = None) -> None:
    """Sends the records in order, by partition in as few batches as they fit into."""
    own = producer or await Producer.open(bootstrap)
    parts: dict[int, list[Written]] = {}
    for record in records:
        parts.setdefault(record.partition, []).append(record)
    try:
        for number, part in parts.items():
            await _ship_partition(own, Partition(topic, number), part)
    finally:
        if producer is None:
            await own.abandon()


async def _ship_partition(producer: Producer, partition: Partition, records: Sequence[Written]) -> None:
    batch = producer.batch()
    now = time.time_ns() // 1_000_000
    for record in records:
        while batch.append(timestamp=now, key=record.key, value=record.value, headers=record.headers) is None:
            await producer.send(batch, partition)
            batch = producer.batch()
    if batch.record_count():
        await producer.send(batch, partition)
