"""One batch of one topic into the database: what is new in it is handed to the topic's handler, what is poison comes back.

Runs inside the consumer's transaction, and again from the start when that was rolled back. What is known of the batch's
logs and streams is read without a lock: it changes only together with the offsets, and the transaction ends by comparing
those. The handler comes first of what is written. It may begin with a COPY (see `consumed.advance`); after that it writes
statement by statement, not in a pipeline (see `consumed.store_marks`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg

from shared.consumer import intake
from shared.consumer import store as consumed
from shared.consumer.intake import Batch, Intake, Kind
from shared.events.topics import Topic
from shared.kafka import Record
from shared.postgres import Connection

# What an event, and not the database, is to blame for.
POISON = (psycopg.DataError, psycopg.IntegrityError, ValueError, TypeError, LookupError, ArithmeticError)

Handler = Callable[[Connection, Sequence[Any]], Awaitable[None]]


@dataclass(frozen=True)
class Subscription:
    """A topic, how its duplicates are known, and what stores its events.

    The handler gets `shared.events.requests.RequestEvent` on `Kind.MARKS`, else `shared.consumer.intake.Event`, in the order of
    each partition, and keeps nothing outside of the database: it may run again for the same events. What it raises of
    `POISON` is traced to single events, which are parked.
    """

    topic: Topic
    kind: Kind
    handler: Handler


async def store(
    connection: Connection, subscription: Subscription, batch: Batch, partitions: int, *, careful: bool
) -> Intake:
    """Stores what is new in the batch. `careful`: event by event where need be, so that poison can be told apart."""
    match subscription.kind:
        case Kind.MARKS:
            requests, unreadable = intake.read_requests(batch)
            keys = {(request.log, request.record.partition) for request in requests}
            marks = await consumed.load_marks(connection, keys)
            part = intake.by_marks(requests, marks, datetime.now(UTC))
            part.poison += unreadable
            await _handle(connection, subscription.handler, part, careful)
            await consumed.store_marks(connection, marks, partitions)
        case Kind.VERSIONS:
            topic = subscription.topic.name
            versions = await consumed.load_versions(connection, topic, intake.streams_of(batch))
            part = intake.by_versions(batch, versions)
            await _handle(connection, subscription.handler, part, careful)
            await consumed.store_versions(connection, topic, versions)
        case Kind.LATEST:
            part = intake.latest(batch)
            await _handle(connection, subscription.handler, part, careful)
    for partition, records in batch.items():
        part.next_offsets.setdefault(partition, records[-1].offset + 1)
    return part


async def _handle(connection: Connection, handler: Handler, part: Intake, careful: bool) -> None:
    if part.events and careful:
        part.poison += await _sift(connection, handler, part.events, part.records)
    elif part.events:
        await handler(connection, part.events)


async def _sift(
    connection: Connection, handler: Handler, events: Sequence[Any], records: Sequence[Record]
) -> list[tuple[Record, str]]:
    """Applies the events but those that can't be, found by halving; returns their records with the reasons."""
    try:
        async with connection.transaction():
            await handler(connection, events)
    except POISON as error:
        if len(events) == 1:
            return [(records[0], intake.reason(error))]
        half = len(events) // 2
        first = await _sift(connection, handler, events[:half], records[:half])
        return first + await _sift(connection, handler, events[half:], records[half:])
    return []
