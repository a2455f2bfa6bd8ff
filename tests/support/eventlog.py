"""A small event-sourced service for tests of the event store and the relay: counters, whose read model is one table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from psycopg.types.json import Jsonb

from shared.events import EventData, NewEvent
from shared.eventstore import Change, Handled, Meta, Stream, handle, registry
from shared.postgres import MIGRATIONS, Connection, Pool, migrate, open_pool, transaction
from shared.relay.publication import State

META = Meta(actor="test", request_id="r-1")


class Added(EventData):
    """A number was added to a counter."""

    TYPE: ClassVar[str] = "counter.added"
    amount: int


class CounterState(EventData):
    """A counter's sum."""

    TYPE: ClassVar[str] = "counter.state"
    total: int


@dataclass(frozen=True)
class Counter:
    """A counter after its events."""

    total: int = 0


def apply(counter: Counter | None, event: EventData, _private: dict[str, Any] | None) -> Counter:
    """The counter after an event."""
    assert isinstance(event, Added)
    return Counter((counter.total if counter else 0) + event.amount)


async def states_of(connection: Connection, streams: Sequence[str]) -> list[State]:
    """The counters' rows as the relay publishes them; the row's key is its stream."""
    query = "SELECT stream, version, total FROM counters WHERE stream = ANY(%s)"
    rows = await (await connection.execute(query, [list(streams)])).fetchall()
    return [State(row["stream"], row["version"], CounterState(total=row["total"])) for row in rows]


def counters(stream: str) -> Stream[Counter]:
    """The kind of stream, projecting into this stream's row."""

    async def project(connection: Connection, change: Change[Counter]) -> None:
        await connection.execute(
            "INSERT INTO counters (stream, version, total) VALUES (%s, %s, %s) ON CONFLICT (stream)"
            " DO UPDATE SET version = excluded.version, total = excluded.total",
            [stream, change.version, change.after.total],
        )

    async def read(connection: Connection, _stream: str) -> tuple[Counter, int] | None:
        query = "SELECT version, total FROM counters WHERE stream = %s"
        row = await (await connection.execute(query, [stream])).fetchone()
        return (Counter(row["total"]), row["version"]) if row else None

    return Stream(registry([Added]), apply, project, read)


async def add(pool: Pool, stream: str, *amounts: int) -> Handled[Counter]:
    """Appends these amounts in one command."""

    async def decide(_: Connection, _counter: Counter | None) -> list[NewEvent]:
        return [NewEvent(Added(amount=amount), {"hash": "secret"}) for amount in amounts]

    return await handle(pool, counters(stream), stream, decide, META)


@asynccontextmanager
async def event_log(dsn: str, size: int = 8) -> AsyncIterator[Pool]:
    """A pool on a database that has an event log and the counters' table."""
    await migrate(dsn, [MIGRATIONS / "eventstore"])
    async with open_pool(dsn, size=size) as pool:
        async with transaction(pool) as connection:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS counters (stream text PRIMARY KEY, version integer, total bigint)"
            )
        yield pool


async def rows(pool: Pool, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """What a query finds."""
    async with transaction(pool) as connection:
        return await (await connection.execute(query.encode(), [wrapped(value) for value in values])).fetchall()


def wrapped(value: Any) -> Any:
    """A dictionary goes in as JSON."""
    return Jsonb(value) if isinstance(value, dict) else value
