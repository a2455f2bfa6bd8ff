"""The relay's only SQL: a service's log, and the checkpoint beside it, by the connection that holds the leader's lock."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NamedTuple

from psycopg.types.json import Jsonb

from shared.eventstore import CHANNEL, StoredEvent, read_log
from shared.kafka import KafkaUnavailable
from shared.postgres import Connection
from shared.relay.checkpoint import Checkpoint, Written
from shared.relay.publication import Publication, State


class Head(NamedTuple):
    """Where the log ends."""

    epoch: int
    position: int


class Known(NamedTuple):
    """A stream, and the position of its first event. `ended`: its last one lies at or before a position."""

    position: int
    stream: str
    ended: bool


class Log:
    """A service's log as its relay reads it."""

    def __init__(self, connection: Connection, publication: Publication) -> None:
        self._connection = connection
        self._what = publication

    async def listen(self) -> None:
        """From now on `appended` returns when something is appended."""
        await self._connection.execute(f"LISTEN {CHANNEL}")

    async def appended(self, seconds: float) -> None:
        """Returns when something was appended, or after that time."""
        async for _ in self._connection.notifies(timeout=seconds, stop_after=1):
            pass

    async def head(self) -> Head:
        """Where the log ends."""
        row = await (await self._connection.execute("SELECT epoch, position FROM log_head")).fetchone()
        assert row is not None
        return Head(row["epoch"], row["position"])

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """At most `limit` events after a position."""
        return await read_log(self._connection, after, limit)

    async def ids(self, positions: Collection[int]) -> dict[int, str]:
        """The ids of the events at these positions."""
        query = "SELECT position, event_id::text AS id FROM events WHERE position = ANY(%s)"
        rows = await (await self._connection.execute(query, [list(positions)])).fetchall()
        return {row["position"]: row["id"] for row in rows}

    async def states(self, streams: Sequence[str]) -> list[State]:
        """The streams' states as they are now."""
        return await self._what.states_of(self._connection, streams) if self._what.states_of else []

    async def streams(self, after: int, upto: int, limit: int, final: Collection[str], retired: int) -> list[Known]:
        """Streams that began after one position, at most at another, and whether an event of `final` up to `retired`
        was their last; at most `limit`, by position."""
        query = (
            "SELECT position, stream, EXISTS (SELECT FROM events AS e WHERE e.stream = first.stream"
            " AND e.type = ANY(%(final)s) AND e.position <= %(retired)s) AS ended"
            " FROM events AS first WHERE version = 1 AND position > %(after)s AND position <= %(upto)s"
            " ORDER BY position LIMIT %(limit)s"
        )
        values = {"final": list(final), "retired": retired, "after": after, "upto": upto, "limit": limit}
        return [Known(**row) async for row in await self._connection.execute(query, values)]

    async def older(self, after: int, upto: int, age: timedelta, limit: int) -> list[StoredEvent]:
        """The events of the next `limit` positions after one, at most at another, that are older than `age`.

        The log's times never go back, so the first that is younger is the end.
        """
        query = (
            "SELECT * FROM (SELECT * FROM events WHERE position > %s AND position <= %s ORDER BY position LIMIT %s)"
            " AS following WHERE recorded_at < now() - %s ORDER BY position"
        )
        rows = await (await self._connection.execute(query, [after, upto, limit, age])).fetchall()
        return [StoredEvent(**row) for row in rows]

    async def checkpoint(self) -> Checkpoint:
        """The checkpoint."""
        query = "SELECT position, topics, offsets, generation, streams, retired FROM relay"
        row = await (await self._connection.execute(query)).fetchone()
        assert row is not None
        written = Written.of(row["topics"], row["offsets"])
        streams = None if row["streams"] is None else tuple(row["streams"])
        return Checkpoint(row["position"], written, row["generation"], streams, row["retired"])

    async def move(self, held: Checkpoint, to: Checkpoint) -> Checkpoint:
        """Stores and returns the checkpoint that follows; `KafkaUnavailable` when another relay has moved it meanwhile."""
        streams = None if to.streams is None else list(to.streams)
        saved = await self._connection.execute(
            "UPDATE relay SET position = %s, topics = %s, offsets = %s, generation = %s, streams = %s, retired = %s"
            " WHERE position = %s AND generation = %s AND retired = %s",
            [
                *(
                    to.position,
                    Jsonb(dict(to.written.topics)),
                    Jsonb(to.written.named()),
                    to.generation,
                    streams,
                    to.retired,
                ),
                *(held.position, held.generation, held.retired),
            ],
        )
        if saved.rowcount != 1:
            raise KafkaUnavailable("the checkpoint was moved by another relay")
        return to

    async def need_repair(self, why: str) -> None:
        """Has commands refused until somebody has looked."""
        await self._connection.execute("UPDATE log_head SET repair_needed = %s", [why])
