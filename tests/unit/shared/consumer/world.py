"""Consumers on a broker and a database of memory, in a time that passes by itself: a minute of faults takes milliseconds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar, cast
from unittest import mock

import msgspec
from typing_extensions import override

from shared.consumer.loop import Consumer
from shared.consumer.poison import Tolerance
from shared.consumer.transaction import Kind, Subscription, Together
from shared.events.requests import RequestEvent
from shared.events.topics import Topic
from shared.kafka import Partition
from shared.postgres import Pool
from tests.integration.usage.traffic import Log, Written
from tests.support import fakeclients, fakestore
from tests.support.fakebroker import Entry, FakeBroker
from tests.support.fakestore import FakeConnection, FakeDatabase
from tests.support.virtual import VirtualLoop

T = TypeVar("T")
REQUESTS, STREAMS = Topic("requests"), Topic("streams")
PARTITIONS = 3
BAD, WORSE = 599, 598
"""The status codes, one of them also a field, that handlers can't store, and can't even prepare for."""


async def store_requests(connection: Any, events: Sequence[RequestEvent]) -> None:
    if any(event.data.status_code == BAD for event in events):
        raise ValueError("bad")
    await _store(connection, [(event.source, event.data.sequence) for event in events])


class Requests(Together):
    def __init__(self) -> None:
        super().__init__(store_requests)

    @override
    def add(self, events: Sequence[RequestEvent]) -> None:
        if any(event.data.status_code == WORSE for event in events):
            raise ArithmeticError("worse")
        super().add(events)


async def store_streams(connection: Any, events: Sequence[Any]) -> None:
    if any("bad" in event.data for event in events):
        raise LookupError("bad")
    await _store(connection, [(event.subject, event.streamversion) for event in events])


async def _store(connection: FakeConnection, rows: list[tuple[str, int]]) -> None:
    await connection.write(lambda tables: tables.taken.extend(rows))


SUBSCRIPTIONS = [
    Subscription(REQUESTS, Kind.MARKS, Requests),
    Subscription(STREAMS, Kind.VERSIONS, lambda: Together(store_streams)),
]


@dataclass
class Running:
    consumer: Consumer
    stop: asyncio.Event
    task: asyncio.Task[None]


@dataclass
class World:
    """The broker, the database, and the consumers that run. `good`: what has to be taken; `bad`: what has to be parked."""

    loop: VirtualLoop = field(default_factory=VirtualLoop)
    running: list[Running] = field(default_factory=list)
    good: list[tuple[str, int]] = field(default_factory=list)
    bad: Counter[bytes | None] = field(default_factory=Counter)
    _made: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> World:
        self._made.enter_context(mock.patch("time.monotonic", self.loop.time))
        self.run_to_end(self._make())
        return self

    async def _make(self) -> None:
        self.broker = self._made.enter_context(fakeclients.installed(FakeBroker()))
        self.database = self._made.enter_context(fakestore.installed(FakeDatabase()))
        for topic in (REQUESTS, STREAMS):
            self.broker.create(topic.name, PARTITIONS, {})

    def __exit__(self, *_: object) -> None:
        for running in list(self.running):
            self.kill(running)
        self._made.close()
        self.loop.close()

    # Time and consumers.

    def run_to_end(self, what: Coroutine[Any, Any, T]) -> T:
        """What else runs goes on the next time."""
        return self.loop.run_until_complete(what)

    def run(self, seconds: float) -> None:
        self.run_to_end(asyncio.sleep(seconds))

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = self.loop.time() + seconds
        while not condition():
            if self.loop.time() > end:
                raise TimeoutError
            self.run(0.1)

    def start(self, tolerance: Tolerance | None = None) -> Running:
        async def begin() -> Running:
            pool, stop = cast(Pool, self.database), asyncio.Event()
            consumer = Consumer("fake", pool, "group", SUBSCRIPTIONS, tolerance=tolerance or Tolerance(sources=1000))
            made = Running(consumer, stop, asyncio.ensure_future(consumer.run(stop)))
            self.running.append(made)
            return made

        return self.run_to_end(begin())

    def end(self, running: Running) -> None:
        """In order."""

        async def end() -> None:
            running.stop.set()
            await running.task

        self.running.remove(running)
        self.run_to_end(end())

    def kill(self, running: Running) -> None:
        """At once: what it waits for goes on without it, and the group gets to know it."""

        async def kill() -> None:
            running.task.cancel()
            await asyncio.gather(running.task, return_exceptions=True)

        self.running.remove(running)
        self.run_to_end(kill())

    def ready(self) -> bool:
        return all(running.consumer.checks()["consumer"]().ready for running in self.running)

    # Records.

    def ship(self, records: Iterable[Written]) -> None:
        """As an edge does, record after record; what is `BAD` is to be parked."""
        for record in records:
            headers = tuple(record.headers)
            self._write(Partition(REQUESTS.name, record.partition), Entry(record.key, record.value, headers, 0))

    def expect(self, records: Iterable[Written]) -> None:
        for record in records:
            if record.event.data.status_code in (BAD, WORSE):
                self.bad[record.value] += 1
            else:
                self.good.append((record.event.source, record.event.data.sequence))

    def relay(self, entries: Sequence[tuple[str, bytes | None]], *, commit: bool = True) -> None:
        """A relay's transaction, of (stream, value)."""
        epoch = self.run_to_end(self._async(lambda: self.broker.open_id("relay", 60.0)))
        partitions = {self.partition(stream) for stream, _ in entries}
        self.run_to_end(self._async(lambda: self.broker.join("relay", epoch, partitions)))
        for stream, value in entries:
            self.broker.write(self.partition(stream), [Entry(stream.encode(), value, (), 0)], "relay", epoch)
        if commit:
            self.broker.commit("relay", epoch)

    def partition(self, stream: str) -> Partition:
        return Partition(STREAMS.name, sum(stream.encode()) % PARTITIONS)

    def _write(self, partition: Partition, entry: Entry) -> None:
        self.broker.write(partition, [entry])

    async def _async(self, what: Callable[[], Any]) -> Any:
        return what()

    # What has to hold.

    def taken(self) -> list[tuple[Any, ...]]:
        return self.database.tables.taken

    def check(self) -> None:
        """Nothing twice, nothing that was not sent, and streams in order."""
        taken = self.taken()
        assert len(taken) == len(set(taken)), "something was stored twice"
        assert set(taken) <= set(self.good)
        for stream in {name for name, _ in taken}:
            versions = [number for name, number in taken if name == stream]
            if stream.startswith("stream-"):
                assert versions == sorted(versions), "out of order"

    def settled(self) -> bool:
        letters = Counter(self.database.tables.letters.values())
        return set(self.taken()) == set(self.good) and set(letters) == set(self.bad) and self.ready()

    def settle(self) -> None:
        """After all faults everything is stored, once."""
        self.broker.heal()
        self.database.heal()
        if not self.running:
            self.start()
        try:
            self.until(self.settled, 8000.0)
        except TimeoutError:
            missing = set(self.good) - set(self.taken())
            details = [running.consumer.checks()["consumer"]() for running in self.running]
            raise AssertionError(f"missing {sorted(missing)[:10]} of {len(self.good)}; {details}") from None
        self.check()


def event(stream: str, version: int, *, bad: bool = False) -> bytes:
    """A relayed event."""
    moment = datetime(2024, 3, 21, 12, tzinfo=UTC)
    data = {"bad": True} if bad else {}
    envelope = {"type": "thing.done", "time": moment, "subject": stream, "streamversion": version, "data": data}
    return msgspec.json.encode(envelope)


def new_log() -> Log:
    return Log(PARTITIONS)
