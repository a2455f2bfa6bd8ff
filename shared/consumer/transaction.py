"""What one transaction stores of the records of one topic: what is new goes to the topic's handler, poison comes back.

What is known of the logs and streams is read without a lock: it changes only together with the offsets, and the
transaction ends by comparing those. The handler comes first of what is written. It may begin with a COPY (see
`store.advance`); after that it writes statement by statement, not in a pipeline (see `store.store_marks`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import psycopg
from psycopg import errors

from shared.consumer import dead_letters, intake, store
from shared.consumer.intake import Intake, Kind, LogMark, Poison
from shared.consumer.records import Fetched, read_log_records, reason
from shared.events.topics import Topic
from shared.kafka import Partition, Record
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


class Work(Protocol):
    """What a transaction is to do with events of one topic."""

    def add(self, events: Sequence[Any]) -> None:
        """Prepares for some more events. Pure, and long before the transaction, if there is one."""
        ...

    async def store(self, connection: Connection) -> None:
        """Stores what was added, once."""
        ...


class Together:
    """The work of a handler that wants all events at once, and only when they are stored."""

    def __init__(self, handler: Callable[[Connection, Sequence[Any]], Awaitable[None]]) -> None:
        self._handler = handler
        self._events: list[Any] = []

    def add(self, events: Sequence[Any]) -> None:
        """Keeps them."""
        self._events += events

    async def store(self, connection: Connection) -> None:
        """Hands them over."""
        await self._handler(connection, self._events)


@dataclass(frozen=True)
class Subscription:
    """A topic, how its duplicates are known, and what is done with its events, by the work of one transaction at a time.

    Work gets `shared.events.requests.RequestEvent` on `Kind.MARKS`, else `shared.consumer.records.Event`, in the order of
    each partition, and keeps nothing outside of the database: others may have to do it again. What it raises of `POISON`
    is traced to single events, which are parked.
    """

    topic: Topic
    kind: Kind
    work: Callable[[], Work]


async def take(
    connection: Connection, subscription: Subscription, topic: store.TopicId, fetched: Fetched, *, careful: bool
) -> Intake:
    """Reads and stores what is new. `careful`: event by event where need be, so that poison can be told apart."""
    match subscription.kind:
        case Kind.MARKS:
            part = await _by_marks(connection, subscription, topic, fetched, careful)
        case Kind.VERSIONS:
            part = await _by_versions(connection, subscription, topic, fetched, careful)
        case Kind.LATEST:
            part = intake.latest(fetched)
            await _work(connection, subscription, part, careful)
    return part


async def _by_marks(
    connection: Connection, subscription: Subscription, topic: store.TopicId, fetched: Fetched, careful: bool
) -> Intake:
    part, now = Intake(), datetime.now(UTC)
    read = {partition: read_log_records(records) for partition, records in fetched.items()}
    keys = {(each.log, partition.partition) for partition, (found, _) in read.items() for each in found}
    marks = await store.load_marks(connection, keys)
    of: dict[Partition, dict[str, LogMark]] = {
        partition: {log: mark for (log, number), mark in marks.items() if number == partition.partition}
        for partition in fetched
    }
    for partition, (found, nameless) in read.items():
        part.poison += [(partition, record, error) for record, error in nameless]
        for record, event in intake.one_by_one(part, partition, found, of[partition], now):
            part.events.append(event)
            part.origins.append((partition, record))
    await _work(connection, subscription, part, careful)
    await store.store_marks(connection, marks, topic.partitions)
    return part


async def _by_versions(
    connection: Connection, subscription: Subscription, topic: store.TopicId, fetched: Fetched, careful: bool
) -> Intake:
    read = intake.read_streams(fetched)
    streams = {each.stream for records in read.values() for each in records if each.stream}
    versions = await store.load_versions(connection, topic.name, streams)
    nameless = [(partition, each.record) for partition, records in read.items() for each in records if not each.version]
    part = intake.by_versions(read, versions, await dead_letters.parked(connection, topic.id, nameless))
    await _work(connection, subscription, part, careful)
    await store.store_versions(connection, topic.name, versions)
    return part


async def _work(connection: Connection, subscription: Subscription, part: Intake, careful: bool) -> None:
    part.taken += len(part.events)
    if part.events and careful:
        part.poison += await _sift(connection, subscription.work, part.events, part.origins)
    elif part.events:
        await _done(connection, subscription.work, part.events)


async def _done(connection: Connection, work: Callable[[], Work], events: Sequence[Any]) -> None:
    doing = work()
    doing.add(events)
    await doing.store(connection)


async def _sift(
    connection: Connection, work: Callable[[], Work], events: Sequence[Any], origins: Sequence[tuple[Partition, Record]]
) -> list[Poison]:
    """Stores the events but those that can't be, found by halving; returns their records with the reasons."""
    try:
        async with connection.transaction():
            await _done(connection, work, events)
    except POISON as error:
        if len(events) == 1:
            return [(*origins[0], reason(error))]
        half = len(events) // 2
        first = await _sift(connection, work, events[:half], origins[:half])
        return first + await _sift(connection, work, events[half:], origins[half:])
    return []
