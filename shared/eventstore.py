"""The event store: one append-only log a service, in which positions have no gaps and follow the order of commits.

Every append takes the single row of `log_head` last, so a reader may assert `position == previous + 1`. A stream's
unique (stream, version) is the concurrency check. The table is also the outbox: `shared.relay.loop` publishes it.

A command finds its stream's state in the row that the append before it wrote (`Stream.project`), so it costs the same
however long the stream is. The fold over the events is for a stream whose row is missing.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from psycopg import errors
from psycopg.types.json import Jsonb

from shared.errors import Conflict, Unavailable
from shared.events import EventData, NewEvent
from shared.postgres import Connection, Pool, transaction

CHANNEL = "events"
_TRIES = 4
_REMEMBERED = timedelta(days=90)
_log = structlog.get_logger()


@dataclass(frozen=True)
class Meta:
    """Who caused an event, in which request, and why. Goes into the envelope's extension attributes.

    `causation_id`: the request or command that led to it. `correlation_id`: the greater whole that this belongs to.
    """

    actor: str
    reason: str | None = None
    request_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None

    @classmethod
    def of(cls, actor: str) -> Meta:
        """Of what `actor` asked for in the request that is being answered: that caused it, and it belongs to what the client
        says, or to nothing else.
        """
        ids = structlog.contextvars.get_contextvars()
        request_id = ids.get("request_id")
        return cls(
            actor,
            request_id=request_id,
            correlation_id=ids.get("correlation_id", request_id),
            causation_id=request_id,
            traceparent=ids.get("traceparent"),
        )


@dataclass(frozen=True)
class StoredEvent:
    """An event as it lies in the log."""

    position: int
    event_id: uuid.UUID
    stream: str
    version: int
    type: str
    schema_version: int
    data: dict[str, Any]
    private: dict[str, Any] | None
    meta: dict[str, Any]
    recorded_at: datetime


State = TypeVar("State")
Registry = dict[str, type[EventData]]


def registry(events: Iterable[type[EventData]]) -> Registry:
    """Event classes by their published name."""
    return {event.TYPE: event for event in events}


@dataclass(frozen=True)
class Change(Generic[State]):
    """What `events` have made of a stream, up to `version`. `before` is None when nothing was written of it yet."""

    before: State | None
    after: State
    version: int
    events: Sequence[EventData]


@dataclass(frozen=True)
class Stream(Generic[State]):
    """How one kind of stream is folded, written and read.

    `apply(state, event, private)` never fails and never validates. `project(connection, change)` writes the state, and
    the rest of the service's read model, in the append transaction: so a caller reads its own writes, and the next
    command finds the state. `read(connection, stream)` gives it back with its version, None when there is no row.
    """

    events: Registry
    apply: Callable[[State | None, EventData, dict[str, Any] | None], State]
    project: Callable[[Connection, Change[State]], Awaitable[None]]
    read: Callable[[Connection, str], Awaitable[tuple[State, int] | None]]


@dataclass(frozen=True)
class Loaded(Generic[State]):
    """A stream as a command finds it. `missed`: the events that nothing was written of, when there was no row."""

    state: State | None
    version: int
    missed: Sequence[EventData] = field(default_factory=tuple)


class Place(NamedTuple):
    """A position and the epoch that it belongs to: positions begin lower again in a later epoch."""

    epoch: int
    position: int


@dataclass(frozen=True)
class Handled(Generic[State]):
    """What became of a command: the state after it, the stream's version, and where in the log its last event lies."""

    state: State
    version: int
    place: Place


async def read_stream(connection: Connection, stream: str) -> list[StoredEvent]:
    """The stream's events in order."""
    rows = await (
        await connection.execute("SELECT * FROM events WHERE stream = %s ORDER BY version", [stream])
    ).fetchall()
    return [StoredEvent(**row) for row in rows]


async def read_log(connection: Connection, after: int, limit: int) -> list[StoredEvent]:
    """At most `limit` events after a position. A hole in the positions is a broken promise, never something to wait for."""
    query = "SELECT * FROM events WHERE position > %s ORDER BY position LIMIT %s"
    rows = await (await connection.execute(query, [after, limit])).fetchall()
    for expected, row in enumerate(rows, after + 1):
        if row["position"] != expected:
            raise AssertionError(f"the log has a hole: {expected} expected, {row['position']} found")
    return [StoredEvent(**row) for row in rows]


async def append(connection: Connection, stream: str, held: int, events: Sequence[NewEvent], meta: Meta) -> Place:
    """Appends after version `held` and returns the place of the last event. Must be its transaction's last work.

    Raises psycopg's UniqueViolation when the stream has gone on, `Unavailable` (repair_needed) when Kafka holds more
    than this log: then positions would be given out twice.
    """
    head = await (
        await connection.execute(
            "UPDATE log_head SET position = position + %s, recorded_at = greatest(recorded_at, clock_timestamp())"
            " RETURNING epoch, position, recorded_at, repair_needed",
            [len(events)],
        )
    ).fetchone()
    assert head is not None
    if head["repair_needed"]:
        raise Unavailable(
            "The event log needs a repair: " + head["repair_needed"], code="repair_needed", retry_after=60
        )
    first = head["position"] - len(events) + 1
    known = {name: value for name, value in vars(meta).items() if value is not None}
    # One by one: inside a pipeline (executemany) the server has no deadline for a process that was stopped.
    for index, event in enumerate(events):
        await connection.execute(
            "INSERT INTO events (position, event_id, stream, version, type, schema_version, data, private, meta, recorded_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                first + index,
                uuid.uuid4(),
                stream,
                held + 1 + index,
                event.data.TYPE,
                event.data.SCHEMA_VERSION,
                Jsonb(event.data.model_dump(mode="json")),
                Jsonb(event.private) if event.private is not None else None,
                Jsonb(known),
                head["recorded_at"],
            ],
        )
    await connection.execute(f"NOTIFY {CHANNEL}")
    return Place(head["epoch"], head["position"])


async def load(connection: Connection, kind: Stream[State], stream: str) -> Loaded[State]:
    """The stream as it was last written; folded from its events when it was not."""
    found = await kind.read(connection, stream)
    return Loaded(*found) if found else await fold(connection, kind, stream)


async def fold(connection: Connection, kind: Stream[State], stream: str) -> Loaded[State]:
    """The stream from its events alone; version 0 without a state when it has none."""
    state: State | None = None
    events = []
    for stored in await read_stream(connection, stream):
        events.append(kind.events[stored.type].model_validate(stored.data))
        state = kind.apply(state, events[-1], stored.private)
    return Loaded(state, len(events), events)


Decide = Callable[[Connection, State | None], Awaitable[Sequence[NewEvent]]]


async def handle(pool: Pool, kind: Stream[State], stream: str, decide: Decide[State], meta: Meta) -> Handled[State]:
    """Load, decide, project, append, in one transaction; again when another command was quicker, a few times.

    `decide` returns the events, none when nothing changes, or raises a `Problem`. `Conflict` when the race is lost
    every time.
    """
    for attempt in range(_TRIES):
        try:
            async with transaction(pool) as connection:
                return await _handle_once(connection, kind, stream, decide, meta)
        except errors.UniqueViolation as error:
            _log.info("append raced", stream=stream, attempt=attempt, constraint=error.diag.constraint_name)
    raise Conflict("The resource changed at the same time; try again.")


async def _handle_once(
    connection: Connection, kind: Stream[State], stream: str, decide: Decide[State], meta: Meta
) -> Handled[State]:
    found = await load(connection, kind, stream)
    events = await decide(connection, found.state)
    state = found.state
    for event in events:
        state = kind.apply(state, event.data, event.private)
    if state is None:
        raise AssertionError(f"{stream} has neither events nor a state")
    if not events:
        return Handled(state, found.version, await _place(connection, stream, found.version))
    version = found.version + len(events)
    before = None if found.missed else found.state
    made = [*found.missed, *(event.data for event in events)]
    await kind.project(connection, Change(before, state, version, made))
    return Handled(state, version, await append(connection, stream, found.version, events, meta))


async def _place(connection: Connection, stream: str, version: int) -> Place:
    query = "SELECT epoch, events.position FROM events, log_head WHERE stream = %s AND version = %s"
    row = await (await connection.execute(query, [stream, version])).fetchone()
    assert row is not None
    return Place(row["epoch"], row["position"])


async def reserve_id(connection: Connection, sequence: str, command_id: uuid.UUID | None = None) -> int:
    """The next id of a sequence; with a `command_id`, the same one at each try within 90 days. An id that is not used stays
    a gap.
    """
    if command_id is not None:
        query = "SELECT result FROM commands WHERE id = %s"
        if had := await (await connection.execute(query, [command_id])).fetchone():
            return int(had["result"]["id"])
    row = await (await connection.execute("SELECT nextval(%s::regclass) AS id", [sequence])).fetchone()
    assert row is not None
    if command_id is not None:
        query = "INSERT INTO commands (id, result) VALUES (%s, %s) ON CONFLICT DO NOTHING"
        if (await connection.execute(query, [command_id, Jsonb({"id": row["id"]})])).rowcount == 0:
            return await reserve_id(connection, sequence, command_id)
        await _forget_commands(connection)
    return int(row["id"])


async def _forget_commands(connection: Connection) -> None:
    """A few at each command that is remembered: so the table holds no more than came in that time."""
    await connection.execute(
        "DELETE FROM commands WHERE id IN (SELECT id FROM commands WHERE recorded_at < now() - %s"
        " ORDER BY recorded_at LIMIT 10 FOR UPDATE SKIP LOCKED)",
        [_REMEMBERED],
    )
