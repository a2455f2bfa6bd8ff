"""What one transaction does with the records of one topic: what is new goes to the topic's handler, poison comes back.

It runs inside the consumer's transaction, and again from the start when that was rolled back. What is known of the logs
and streams is read without a lock: it changes only together with the offsets, and the transaction ends by comparing
those. The handler comes first of what is written. It may begin with a COPY (see `store.advance`); after that it writes
statement by statement, not in a pipeline (see `store.store_marks`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import errors

from shared.consumer import dead_letters, intake, store
from shared.consumer.intake import Intake, Kind
from shared.consumer.records import Fetched, read_log_records, reason
from shared.events.topics import Topic
from shared.kafka import Record
from shared.postgres import Connection

POISON = (
    psycopg.DataError,
    psycopg.IntegrityError,
    errors.ProgramLimitExceeded,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What an event, and not the database, is to blame for."""

Handler = Callable[[Connection, Sequence[Any]], Awaitable[None]]


@dataclass(frozen=True)
class Subscription:
    """A topic, how its duplicates are known, and what stores its events.

    The handler gets `shared.events.requests.RequestEvent` on `Kind.MARKS`, else `shared.consumer.records.Event`, in the order
    of each partition, and keeps nothing outside of the database: it may run again for the same events. What it raises of
    `POISON` is traced to single events, which are parked.
    """

    topic: Topic
    kind: Kind
    handler: Handler


async def take(
    connection: Connection, subscription: Subscription, topic: store.TopicId, fetched: Fetched, *, careful: bool
) -> Intake:
    """Stores what is new. `careful`: event by event where need be, so that poison can be told apart."""
    match subscription.kind:
        case Kind.MARKS:
            part = await _by_marks(connection, subscription.handler, topic, fetched, careful)
        case Kind.VERSIONS:
            part = await _by_versions(connection, subscription.handler, topic, fetched, careful)
        case Kind.LATEST:
            part = intake.latest(fetched)
            await _handle(connection, subscription.handler, part, careful)
    for partition, records in fetched.items():
        part.next_offsets.setdefault(partition, records[-1].offset + 1)
    return part


async def _by_marks(
    connection: Connection, handler: Handler, topic: store.TopicId, fetched: Fetched, careful: bool
) -> Intake:
    records, nameless = read_log_records(fetched)
    marks = await store.load_marks(connection, {(each.log, each.record.partition) for each in records})
    part = intake.by_marks(records, marks, datetime.now(UTC))
    part.poison += nameless
    await _handle(connection, handler, part, careful)
    await store.store_marks(connection, marks, topic.partitions)
    return part


async def _by_versions(
    connection: Connection, handler: Handler, topic: store.TopicId, fetched: Fetched, careful: bool
) -> Intake:
    read = intake.read_streams(fetched)
    every = [each for records in read.values() for each in records]
    versions = await store.load_versions(connection, topic.name, {each.stream for each in every if each.stream})
    nameless = [each.record for each in every if not each.version]
    part = intake.by_versions(read, versions, await dead_letters.parked(connection, topic.id, nameless))
    await _handle(connection, handler, part, careful)
    await store.store_versions(connection, topic.name, versions)
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
            return [(records[0], reason(error))]
        half = len(events) // 2
        first = await _sift(connection, handler, events[:half], records[:half])
        return first + await _sift(connection, handler, events[half:], records[half:])
    return []
