"""A service's database as its relay and the leader's lock use it, in memory; the server's limit on idle sessions too."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from unittest import mock

import psycopg
from typing_extensions import override

from shared.eventstore import StoredEvent
from shared.kafka import KafkaUnavailable
from shared.relay.checkpoint import Checkpoint
from shared.relay.publication import Publication, State
from shared.relay.store import Head, Known, Log
from tests.support.eventlog import CounterState

_IDLE = 3.0
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(eq=False)
class FakeDatabase:
    """The log of counters. `age` is added to the clock of the server."""

    events: list[StoredEvent] = field(default_factory=list)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    repair: str | None = None
    age: timedelta = timedelta()
    asked: Counter[str] = field(default_factory=Counter)
    failing: list[bool] = field(default_factory=list)
    locked: FakeConnection | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def append(self, stream: str, kind: str) -> None:
        """An event at the end of the log."""
        version = sum(event.stream == stream for event in self.events) + 1
        position = len(self.events) + 1
        recorded = _EPOCH + timedelta(seconds=position) + self.age
        data, meta = {"amount": position}, {"actor": "test"}
        self.events.append(StoredEvent(position, uuid.uuid4(), stream, version, kind, 1, data, None, meta, recorded))
        self.news.set()
        self.news = asyncio.Event()

    def streams(self) -> dict[str, StoredEvent]:
        """The last event of each stream."""
        return {event.stream: event for event in self.events}

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=len(self.events) + 1) + self.age

    async def connect(self, _dsn: str, *, idle_session_timeout: str) -> FakeConnection:
        assert idle_session_timeout == f"{_IDLE:.0f}s"
        return FakeConnection(self)


class FakeConnection:
    """A session: it is over when it was not used for three seconds."""

    def __init__(self, database: FakeDatabase) -> None:
        self.database = database
        self._used = asyncio.get_running_loop().time()
        self._over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    @property
    def over(self) -> bool:
        return self._over or asyncio.get_running_loop().time() - self._used > _IDLE

    def _end(self) -> None:
        self._over = True
        if self.database.locked is self:
            self.database.locked = None

    async def use(self) -> None:
        await asyncio.sleep(0)
        if self.over:
            self._end()
            raise psycopg.OperationalError("the session is over")
        self._used = asyncio.get_running_loop().time()

    async def execute(self, query: str, _values: Sequence[Any] = ()) -> Any:
        await self.use()
        if "pg_try_advisory_lock" not in query:
            return None
        if self.database.locked is None or self.database.locked.over:
            self.database.locked = self
        return _Row({"got": self.database.locked is self})


@dataclass
class _Row:
    row: dict[str, Any]

    async def fetchone(self) -> dict[str, Any]:
        return self.row


class FakeLog(Log):
    """`shared.relay.store.Log` on a `FakeDatabase`."""

    def __init__(self, connection: Any, publication: Publication) -> None:
        super().__init__(connection, publication)
        self._session: FakeConnection = connection
        self._database: FakeDatabase = connection.database

    async def _use(self, what: str) -> None:
        self._database.asked[what] += 1
        await self._session.use()

    @override
    async def listen(self) -> None:
        await self._use("listen")

    @override
    async def appended(self, seconds: float) -> None:
        news = self._database.news
        try:
            async with asyncio.timeout(seconds):
                await news.wait()
        except TimeoutError:
            pass

    @override
    async def head(self) -> Head:
        await self._use("head")
        return Head(1, len(self._database.events))

    @override
    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        await self._use("read")
        return self._database.events[after : after + limit]

    @override
    async def ids(self, positions: Collection[int]) -> dict[int, str]:
        await self._use("ids")
        known = {event.position: str(event.event_id) for event in self._database.events}
        return {position: known[position] for position in positions if position in known}

    @override
    async def states(self, streams: Sequence[str]) -> list[State]:
        await self._use("states")
        last = self._database.streams()
        return [State(stream, last[stream].version, CounterState(total=last[stream].position)) for stream in streams]

    @override
    async def streams(self, after: int, upto: int, limit: int, final: Collection[str], retired: int) -> list[Known]:
        await self._use("streams")
        ended = {event.stream for event in self._database.events[:retired] if event.type in final}
        began = [event for event in self._database.events[after:upto] if event.version == 1]
        return [Known(event.position, event.stream, event.stream in ended) for event in began[:limit]]

    @override
    async def older(self, after: int, upto: int, age: timedelta, limit: int) -> list[StoredEvent]:
        await self._use("older")
        due = self._database.now() - age
        return [event for event in self._database.events[after:upto][:limit] if event.recorded_at < due]

    @override
    async def checkpoint(self) -> Checkpoint:
        await self._use("checkpoint")
        return self._database.checkpoint

    @override
    async def move(self, held: Checkpoint, to: Checkpoint) -> Checkpoint:
        await self._use("move")
        done = self._database.failing.pop(0) if self._database.failing else None
        if done is False:
            raise psycopg.OperationalError("the connection broke")
        now = self._database.checkpoint
        if (now.position, now.generation, now.retired) != (held.position, held.generation, held.retired):
            raise KafkaUnavailable("the checkpoint was moved by another relay")
        self._database.checkpoint = replace(to)
        if done:
            raise psycopg.OperationalError("the connection broke, though it was moved")
        return to

    @override
    async def need_repair(self, why: str) -> None:
        await self._use("repair")
        self._database.repair = why


@contextmanager
def logged(database: FakeDatabase) -> Iterator[FakeDatabase]:
    """Whatever relays connect to meanwhile is this database."""
    with mock.patch("shared.leader.connect", database.connect), mock.patch("shared.relay.loop.Log", FakeLog):
        yield database
