"""The consumer's tables in memory, and a database that fails: what `shared.consumer` asks of PostgreSQL.

Statements see what is committed and what their own transaction wrote; whoever compares and moves offsets waits for others
that did, as for locked rows. The suite of the consumer's integration tests runs on the real one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import psycopg

from shared.consumer.intake import LogMark, Poison, StreamVersion
from shared.consumer.store import Offset, Superseded
from shared.kafka import Partition, Record


@dataclass
class Tables:
    """What is committed. `taken`: what handlers stored, in order."""

    offsets: dict[Partition, Offset] = field(default_factory=dict)
    marks: dict[tuple[str, int], LogMark] = field(default_factory=dict)
    versions: dict[tuple[str, str], StreamVersion] = field(default_factory=dict)
    letters: dict[tuple[str, int, int], bytes | None] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    taken: list[tuple[Any, ...]] = field(default_factory=list)


class FakeDatabase:
    """A pool of connections. `fail` ends one of the next exchanges: before or after it was carried out; `hang` stops all.

    `pace`: seconds that an exchange takes.
    """

    def __init__(self) -> None:
        self.tables = Tables()
        self.rows = asyncio.Lock()
        self.pace = 0.0
        self._failing: list[tuple[int, bool]] = []
        self._going = asyncio.Event()
        self._going.set()

    def fail(self, after: int, *, done: bool) -> None:
        """The exchange after so many others breaks its connection."""
        self._failing.append((after, done))

    def hang(self) -> None:
        self._going.clear()

    def heal(self) -> None:
        self._failing.clear()
        self._going.set()
        self.pace = 0.0

    async def exchange(self, effect: Callable[[], Any] = lambda: None) -> Any:
        """One with the server, which gives up after the patience of a connection."""
        await asyncio.sleep(self.pace)
        try:
            async with asyncio.timeout(32.0):
                await self._going.wait()
        except TimeoutError:
            raise psycopg.OperationalError("the connection was shut down") from None
        self._failing = [(after - 1, done) for after, done in self._failing]
        broken = [done for after, done in self._failing if after < 0]
        self._failing = [each for each in self._failing if each[0] >= 0]
        if broken and not broken[0]:
            raise psycopg.OperationalError("connection lost")
        found = effect()
        if broken:
            raise psycopg.OperationalError("connection lost, though it was carried out")
        return found

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[FakeConnection]:
        made = FakeConnection(self)
        await self.exchange()
        try:
            yield made
            await made.commit()
        finally:
            made.release()


class FakeConnection:
    """A transaction: what it writes is applied at its end."""

    def __init__(self, database: FakeDatabase) -> None:
        self.database = database
        self._writes: list[Callable[[Tables], None]] = []
        self._locked = False

    async def execute(self, _: str) -> None:
        await self.database.exchange()

    async def write(self, effect: Callable[[Tables], None]) -> None:
        await self.database.exchange()
        self._writes.append(effect)

    async def lock(self) -> None:
        if not self._locked:
            await self.database.rows.acquire()
            self._locked = True

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """The transaction, or within it a savepoint."""
        before = len(self._writes)
        try:
            yield
        except BaseException:
            del self._writes[before:]
            raise

    async def commit(self) -> None:
        def apply() -> None:
            for effect in self._writes:
                effect(self.database.tables)

        await self.database.exchange(apply)

    def release(self) -> None:
        if self._locked:
            self.database.rows.release()
            self._locked = False


async def _adopt(at: FakeConnection, *_: object) -> None:
    await at.database.exchange()


async def _load_offsets(at: FakeConnection, partitions: Collection[Partition]) -> dict[Partition, Offset]:
    offsets = at.database.tables.offsets
    return await at.database.exchange(lambda: {p: offsets[p] for p in partitions if p in offsets})


async def _start(at: FakeConnection, partition: Partition, begin: Offset) -> None:
    await at.lock()
    if partition in at.database.tables.offsets:
        raise Superseded
    await at.write(lambda tables: tables.offsets.__setitem__(partition, begin))


async def _advance(at: FakeConnection, before: Mapping[Partition, Offset], to: Mapping[Partition, Offset]) -> None:
    _compare(at, before)  # rows that are others are not even waited for
    await at.lock()
    _compare(at, before)
    await at.write(lambda tables: tables.offsets.update({partition: to[partition] for partition in before}))


def _compare(at: FakeConnection, before: Mapping[Partition, Offset]) -> None:
    if any(at.database.tables.offsets.get(partition) != offset for partition, offset in before.items()):
        raise Superseded


async def _tell_again(at: FakeConnection, _: int) -> None:
    await at.database.exchange()


async def _load_marks(at: FakeConnection, keys: Collection[tuple[str, int]]) -> dict[tuple[str, int], LogMark]:
    def load() -> dict[tuple[str, int], LogMark]:
        tables = at.database.tables
        return {
            key: LogMark(gone=True)
            if key[0] in tables.closed
            else replace(tables.marks.get(key, LogMark()), changed=False)
            for key in keys
        }

    return await at.database.exchange(load)


async def _store_marks(at: FakeConnection, marks: Mapping[tuple[str, int], LogMark], partitions: int) -> None:
    changed = {key: copy(mark) for key, mark in marks.items() if mark.changed}

    def apply(tables: Tables) -> None:
        tables.marks.update(changed)
        for log in {log for log, _ in changed}:
            held = [mark for (name, _), mark in tables.marks.items() if name == log]
            if len(held) == partitions and all(mark.closed and not mark.gaps for mark in held):
                tables.closed.add(log)
                tables.marks = {key: mark for key, mark in tables.marks.items() if key[0] != log}

    await at.write(apply)


async def _load_versions(at: FakeConnection, topic: str, streams: Collection[str]) -> defaultdict[str, StreamVersion]:
    versions = at.database.tables.versions

    def load() -> defaultdict[str, StreamVersion]:
        found = {s: replace(versions[topic, s], changed=False) for s in streams if (topic, s) in versions}
        return defaultdict(StreamVersion, found)

    return await at.database.exchange(load)


async def _store_versions(at: FakeConnection, topic: str, versions: Mapping[str, StreamVersion]) -> None:
    changed = {(topic, stream): copy(version) for stream, version in versions.items() if version.changed}
    await at.write(lambda tables: tables.versions.update(changed))


async def _park(at: FakeConnection, topics: dict[str, str], poison: Iterable[Poison]) -> None:
    for (topic, number), record, _ in poison:
        key = topics[topic], number, record.offset
        await at.write(lambda tables, key=key, value=record.value: tables.letters.update({key: value}))


async def _parked(
    at: FakeConnection, topic_id: str, records: Collection[tuple[Partition, Record]]
) -> set[tuple[int, int]]:
    letters = at.database.tables.letters
    places = [(partition.partition, record.offset) for partition, record in records]
    return await at.database.exchange(lambda: {place for place in places if (topic_id, *place) in letters})


async def _clean(at: FakeConnection) -> int:
    await at.database.exchange()
    return 0


async def _open_gaps(at: FakeConnection) -> tuple[int, float]:
    return await at.database.exchange(lambda: (0, 0.0))


@contextmanager
def installed(database: FakeDatabase) -> Iterator[FakeDatabase]:
    """Whatever `shared.consumer` asks of a connection of this database meanwhile is answered by it."""
    with (
        mock.patch.multiple(
            "shared.consumer.store",
            adopt=_adopt,
            load_offsets=_load_offsets,
            start=_start,
            advance=_advance,
            tell_again=_tell_again,
            load_marks=_load_marks,
            store_marks=_store_marks,
            load_versions=_load_versions,
            store_versions=_store_versions,
            open_gaps=_open_gaps,
        ),
        mock.patch.multiple("shared.consumer.dead_letters", park=_park, parked=_parked, clean=_clean),
    ):
        yield database
