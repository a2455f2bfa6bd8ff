"""The client library's classes on a `FakeBroker`: as much of each as `shared.kafka` uses of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from aiokafka.admin import NewTopic
from aiokafka.errors import NoOffsetForPartitionError, TopicAlreadyExistsError
from aiokafka.structs import ConsumerRecord
from aiokafka.structs import TopicPartition as Partition

from shared.kafka.protocol import SettingsRequest, TopicsRequest
from tests.support.fakebroker import Entry, FakeBroker, FakeTopic, Group

_BATCH_BYTES = 512 * 1024
_INVALID_REPLICATION = 38
_UNKNOWN_TOPIC = 3


@contextmanager
def installed(broker: FakeBroker) -> Iterator[FakeBroker]:
    """Whatever `shared.kafka` connects to meanwhile is this broker."""
    with (
        mock.patch("shared.kafka.producer.AIOKafkaProducer", lambda **options: FakeProducer(broker, options)),
        mock.patch("shared.kafka.reader.AIOKafkaConsumer", lambda **options: FakeConsumer(broker, options)),
        mock.patch("shared.kafka.topics.AIOKafkaAdminClient", lambda **_: FakeAdmin(broker)),
    ):
        yield broker


class FakeAdmin:
    """`aiokafka.admin.AIOKafkaAdminClient`."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker

    async def start(self) -> None:
        await self._broker.request("metadata", lambda: None)

    async def close(self) -> None:
        pass

    async def create_topics(self, topics: Sequence[NewTopic]) -> Any:
        return await self._broker.request("create", lambda: SimpleNamespace(topic_errors=[*map(self._create, topics)]))

    def _create(self, new: NewTopic) -> tuple[str, int, str]:
        if new.name in self._broker.topics:
            return new.name, TopicAlreadyExistsError.errno, "it exists"
        if new.replication_factor > 1:
            return new.name, _INVALID_REPLICATION, "there is one broker"
        self._broker.create(new.name, new.num_partitions, new.topic_configs)
        return new.name, 0, ""

    async def _send_request(self, request: TopicsRequest | SettingsRequest) -> Any:
        if isinstance(request, TopicsRequest):
            return await self._broker.request("metadata", lambda: _Described(self._broker, request.topics))
        return await self._broker.request("settings", lambda: self._set(request))

    def _set(self, request: SettingsRequest) -> Any:
        answers = []
        for name, settings in request.settings.items():
            known = name in self._broker.topics
            answers.append((0 if known else _UNKNOWN_TOPIC, "", 2, name))
            if known:
                self._broker.topics[name].configs |= settings
        return SimpleNamespace(resources=answers)


class _Described:
    def __init__(self, broker: FakeBroker, topics: Sequence[str]) -> None:
        self._found = {
            "cluster_id": broker.id,
            "topics": [self._topic(name, broker.topics.get(name)) for name in topics],
        }

    def _topic(self, name: str, topic: FakeTopic | None) -> dict[str, Any]:
        return {"topic": name, "topic_id": topic and topic.id, "partitions": list(topic.logs) if topic else []}

    def to_object(self) -> dict[str, Any]:
        return self._found


class _Batch:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._bytes = 0

    def append(
        self,
        *,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> object | None:
        self._bytes += 70 + len(key or b"") + len(value or b"")
        if self.entries and self._bytes > _BATCH_BYTES:
            return None
        self.entries.append(Entry(key, value, tuple(headers), timestamp if timestamp is not None else _now_ms()))
        return self

    def record_count(self) -> int:
        return len(self.entries)


class FakeProducer:
    """`aiokafka.AIOKafkaProducer`: what is sent within a turn of the loop is one request, after its partitions joined."""

    def __init__(self, broker: FakeBroker, options: dict[str, Any]) -> None:
        self._broker = broker
        self._name: str | None = options["transactional_id"]
        self._timeout = options["transaction_timeout_ms"] / 1000
        self._epoch = 0
        self._joined: set[Partition] = set()
        self._pending: list[tuple[Partition, list[Entry], asyncio.Future[Any]]] = []
        self._sending: asyncio.Future[None] | None = None
        self._closed = False
        self._sender = SimpleNamespace(close=self._stop)
        self.client = SimpleNamespace(close=self._stop)

    async def start(self) -> None:
        if self._name is None:
            await self._broker.request("init", lambda: None)
        else:
            name, timeout = self._name, self._timeout
            self._epoch = await self._broker.request("init", lambda: self._broker.open_id(name, timeout))

    async def begin_transaction(self) -> None:
        self._joined = set()

    async def partitions_for(self, topic: str) -> set[int]:
        """Of the topics that there are."""
        return set(self._broker.topics[topic].logs) if topic in self._broker.topics else set()

    async def _send(self) -> None:
        while self._pending and not self._closed:
            await asyncio.sleep(0)
            pending, self._pending = self._pending, []
            try:
                await self._write(pending)
            except Exception as error:
                for _, _, future in pending:
                    if not future.done():
                        future.set_exception(error)
                        future.exception()

    async def _write(self, pending: list[tuple[Partition, list[Entry], asyncio.Future[Any]]]) -> None:
        by_partition: dict[Partition, list[Entry]] = {}
        for partition, entries, _ in pending:
            by_partition.setdefault(partition, []).extend(entries)
        name, epoch = self._name, self._epoch
        if name and (new := by_partition.keys() - self._joined):
            await self._broker.request("join", lambda: self._broker.join(name, epoch, set(new)))
            self._joined |= new
        at = await self._broker.request(
            "produce",
            lambda: {p: self._broker.write(p, entries, name, epoch) for p, entries in by_partition.items()},
        )
        for partition, entries, future in pending:
            if not future.done():
                future.set_result(SimpleNamespace(offset=at[partition]))
            at[partition] += len(entries)

    async def commit_transaction(self) -> None:
        if self._sending is not None:
            await asyncio.shield(self._sending)
        if self._joined and self._name:
            name, epoch = self._name, self._epoch
            await self._broker.request("commit", lambda: self._broker.commit(name, epoch))

    def create_batch(self) -> _Batch:
        return _Batch()

    async def send_batch(self, batch: _Batch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append((Partition(topic, partition), batch.entries, future))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.ensure_future(self._send())
        return future

    async def _stop(self) -> None:
        self._closed = True


_JOIN_SECONDS = 1.0


class FakeConsumer:
    """`aiokafka.AIOKafkaConsumer` of committed records, which resets no offset by itself.

    In a group it may give records of a partition, from where the group had committed, before it tells that the partition
    was assigned (aiokafka issue 738). While it joins again it still tells the partitions that were taken away.
    """

    def __init__(self, broker: FakeBroker, options: dict[str, Any]) -> None:
        self._broker = broker
        self._group: str | None = options["group_id"]
        self._listener: Any = None
        self._joining = False
        self._rejoins = asyncio.Lock()
        self._given = asyncio.Event()
        self._given.set()
        self.read: Sequence[str] = ()
        self._positions: dict[Partition, int | None] = {}
        self._paused: set[Partition] = set()
        self._stable: dict[Partition, int] = {}
        self._client = SimpleNamespace(force_metadata_update=self.start)

    async def start(self) -> None:
        await self._broker.request("metadata", lambda: None)

    async def stop(self) -> None:
        if self._group and self in (members := self._broker.groups[self._group].members):
            members.remove(self)
            if members:
                await self._broker.rebalance(self._group)
        self._positions.clear()

    def subscribe(self, topics: Sequence[str], listener: Any) -> None:
        assert self._group
        self.read, self._listener = topics, listener
        self._broker.groups.setdefault(self._group, Group()).members.append(self)
        self._joining = True

    async def rejoin(self, partitions: Sequence[Partition]) -> None:
        async with self._rejoins:
            self._given.clear()
            await self._listener.on_partitions_revoked(set(self._positions))
            await asyncio.sleep(_JOIN_SECONDS)
            self._paused.clear()
            committed = self._broker.groups[self._group or ""].committed
            self._positions = {partition: committed.get(partition) for partition in partitions}
            self._given.set()
            await asyncio.sleep(0)
            await self._listener.on_partitions_assigned(set(partitions))

    async def topics(self) -> set[str]:
        return await self._broker.request("metadata", lambda: set(self._broker.topics))

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        found = self._broker.topics.get(topic)
        return set(found.logs) if found else None

    def assign(self, partitions: Collection[Partition]) -> None:
        self._positions = dict.fromkeys(partitions)

    def assignment(self) -> set[Partition]:
        return set(self._positions)

    def seek(self, partition: Partition, offset: int) -> None:
        if partition in self._positions:
            self._positions[partition] = offset

    def pause(self, partition: Partition) -> None:
        self._paused.add(partition)

    def resume(self, partition: Partition) -> None:
        self._paused.discard(partition)

    def paused(self) -> set[Partition]:
        return set(self._paused)

    def last_stable_offset(self, partition: Partition) -> int | None:
        return self._stable.get(partition)

    async def beginning_offsets(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return await self._broker.request("offsets", lambda: {p: self._broker.log(p).begin for p in partitions})

    async def end_offsets(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return await self._broker.request("offsets", lambda: {p: self._broker.log(p).stable() for p in partitions})

    async def position(self, partition: Partition) -> int:
        at = self._positions[partition]
        if at is None:
            raise NoOffsetForPartitionError(partition)
        return at

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[Partition, list[ConsumerRecord[Any, Any]]]:
        if self._group:
            await self._take_part(self._group)
        until = asyncio.get_running_loop().time() + timeout_ms / 1000
        while True:
            found = await self._broker.request("fetch", lambda: self._fetch(max_records, at_once=not timeout_ms))
            left = until - asyncio.get_running_loop().time()
            if found or left < 1e-6:  # less may be nothing when it is added to the time
                return found
            await self._broker.grown(left)

    async def _take_part(self, group: str) -> None:
        if self._joining:
            self._joining = False
            await self._broker.request("join group", lambda: None)
            await self._broker.rebalance(group)
        await self._broker.noticed(group, self)
        await self._given.wait()
        if lost := [p for p, at in self._positions.items() if at is None and p not in self._paused]:
            raise NoOffsetForPartitionError(lost[0])

    def _fetch(self, limit: int, *, at_once: bool) -> dict[Partition, list[ConsumerRecord[Any, Any]]]:
        found: dict[Partition, list[ConsumerRecord[Any, Any]]] = {}
        if self._broker.silent or (self._broker.short and at_once):
            return found
        limit = min(limit, self._broker.short or limit)
        for partition, position in self._positions.items():
            if partition in self._paused or position is None or limit <= 0:
                continue
            self._stable[partition] = self._broker.log(partition).stable()
            entries, self._positions[partition] = self._broker.read(partition, position, limit)
            limit -= len(entries)
            if entries:
                found[partition] = [_record(partition, at, entry) for at, entry in entries]
        return found

    async def commit(self, offsets: dict[Partition, int]) -> None:
        committed = self._broker.groups[self._group or ""].committed
        await self._broker.request("offset commit", lambda: committed.update(offsets))


def _record(partition: Partition, offset: int, entry: Entry) -> ConsumerRecord[Any, Any]:
    sizes = len(entry.key or b""), len(entry.value or b"")
    return ConsumerRecord(*partition, offset, entry.timestamp, 0, entry.key, entry.value, None, *sizes, entry.headers)


def _now_ms() -> int:
    return int(time.time() * 1000)
