"""A consumer of one topic into tables of a test, and what is in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any
from unittest import mock
from urllib.parse import urlsplit, urlunsplit

from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from typing_extensions import override

from shared.consumer.loop import Consumer, Kind, Subscription, Together
from shared.consumer.poison import Tolerance
from shared.consumer.records import Event
from shared.events.requests import RequestEvent
from shared.events.topics import Topic
from shared.kafka import Message, Partition, Producer, ensure_topics
from shared.partitions import partition_for
from shared.postgres import MIGRATIONS, Connection, Pool, migrate, open_pool
from shared.settings import Base
from tests.integration.usage.traffic import Written, ship
from tests.support.eventually import eventually
from tests.support.topics import ends_of

REQUESTS = Topic("test-requests", {"cleanup.policy": "delete"})
STREAMS = Topic("test-streams", {"cleanup.policy": "delete"})
PARTITIONS = 6


async def store_requests(connection: Connection, events: Sequence[RequestEvent]) -> None:
    async with connection.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO taken (source, sequence, status, time) VALUES (%s, %s, %s, %s)",
            [(event.source, event.data.sequence, event.data.status_code, event.time) for event in events],
        )


async def store_events(connection: Connection, events: Sequence[Event]) -> None:
    async with connection.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO taken (source, sequence, status) VALUES (%s, %s, %s)",
            [(event.subject, event.streamversion, event.data.get("status", 0)) for event in events],
        )


def by_marks(handler: Callable[[Connection, Sequence[RequestEvent]], Awaitable[None]]) -> Subscription:
    return Subscription(REQUESTS, Kind.MARKS, lambda: Together(handler))


BY_MARKS = by_marks(store_requests)
BY_VERSIONS = Subscription(STREAMS, Kind.VERSIONS, lambda: Together(store_events))


class Bench:
    """The test's topic and tables, and a way to start consumers of the one into the others."""

    def __init__(self, kafka: str, pool: Pool, subscription: Subscription) -> None:
        self.kafka = kafka
        self.pool = pool
        self.subscription = subscription

    @asynccontextmanager
    async def consumer(self, tolerance: Tolerance | None = None, group: str = "test") -> AsyncIterator[Consumer]:
        """A consumer that runs as long as the context lasts."""
        consumer, stop = (
            Consumer(self.kafka, self.pool, group, [self.subscription], tolerance=tolerance),
            asyncio.Event(),
        )
        running = asyncio.create_task(consumer.run(stop))
        try:
            yield consumer
        finally:
            stop.set()
            await running

    async def ship(self, records: Sequence[Written], producer: Producer | None = None) -> None:
        await ship(self.kafka, self.subscription.topic.name, records, producer)

    async def send(self, *messages: tuple[int, bytes, bytes | None]) -> None:
        """Writes (partition, key, value) as they are."""
        producer = await Producer.open(self.kafka, "test")
        topic = self.subscription.topic.name
        await producer.transaction([Message(Partition(topic, number), key, value) for number, key, value in messages])
        await producer.abandon()

    async def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as connection:
            rows = await (await connection.execute(query.encode(), values)).fetchall()
        return [tuple(row.values()) for row in rows]

    async def do(self, query: str, values: Sequence[Any] = ()) -> None:
        async with self.pool.connection() as connection:
            await connection.execute(query.encode(), values)

    async def taken(self) -> list[tuple[str, int]]:
        rows = await self.rows("SELECT source, sequence FROM taken ORDER BY source, sequence")
        return [(source, sequence) for source, sequence in rows]

    async def has_taken(self, expected: Sequence[tuple[str, int]], deadline: float = 30.0) -> None:
        """Waits until everything expected is taken; nothing else may be, and nothing twice."""

        async def complete() -> bool:
            return len(await self.taken()) >= len(expected)

        await eventually(complete, deadline)
        assert await self.taken() == sorted(expected)

    async def ends(self) -> dict[Partition, int]:
        return await ends_of(self.kafka, self.subscription.topic.name)

    async def next_offsets(self) -> dict[int, int]:
        return dict(await self.rows("SELECT partition, next_offset FROM consumer_offsets WHERE next_offset > 0"))  # type: ignore[arg-type]

    async def has_offsets(self, expected: dict[int, int]) -> None:
        async def there() -> bool:
            return await self.next_offsets() == expected

        await eventually(there)


def key_on(partition: int, number: int = 0) -> int:
    """The id of the `number`th key whose events go to the partition."""
    found = (key for key in range(1, 10_000) if partition_for(b"key-%d" % key, PARTITIONS) == partition)
    return next(key for index, key in enumerate(found) if index == number)


def identities(records: Sequence[Written]) -> list[tuple[str, int]]:
    return [(record.event.source, record.event.data.sequence) for record in records]


@asynccontextmanager
async def bench(kafka: str, database: str, subscription: Subscription) -> AsyncIterator[Bench]:
    """Makes the topic and the tables."""
    await migrate(database, [MIGRATIONS / "consumer"])
    await ensure_topics(Base(kafka=kafka), [subscription.topic])
    async with open_pool(database, size=4) as pool:
        made = Bench(kafka, pool, subscription)
        await made.do(
            "CREATE TABLE IF NOT EXISTS taken (source text, sequence bigint, status smallint, time timestamptz)"
        )
        yield made


class _Name(str):
    """A header's name: what of it is encoded are these bytes."""

    raw: bytes

    @override
    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self.raw


@contextmanager
def names_of_any_bytes() -> Iterator[Callable[[bytes], str]]:
    """Makes header names that our own client would not send, as long as the context lasts."""

    def name(raw: bytes) -> str:
        made = _Name("name")
        made.raw = raw
        return made

    with mock.patch("aiokafka.producer.message_accumulator.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy):
        yield name


class Gate:
    """A way to PostgreSQL that can be shut: those inside are thrown out, and nobody gets in."""

    def __init__(self, dsn: str) -> None:
        self._dsn = urlsplit(dsn)
        self._inside: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def dsn(self) -> str:
        credentials = self._dsn.netloc.rpartition("@")[0]
        return urlunsplit(self._dsn._replace(netloc=f"{credentials}@127.0.0.1:{self._port}"))

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._inside:
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._dsn.hostname, self._dsn.port)
        self._inside |= {writer, there[1]}
        with suppress(OSError):
            await asyncio.gather(self._copy(reader, there[1]), self._copy(there[0], writer))
        self._inside -= {writer, there[1]}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
