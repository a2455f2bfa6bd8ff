"""The plumbing around the Kafka client, against a real broker, and the fake one that is to behave like it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import Protocol

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from shared.events.topics import Topic
from shared.kafka import (
    Fenced,
    KafkaUnavailable,
    Message,
    OutOfRange,
    Partition,
    Producer,
    Reader,
    Record,
    cluster_id,
    ensure_topics,
    identify,
    partition_count,
)
from shared.partitions import partition_for
from shared.settings import Base, PartitionsChanged
from tests.support.eventually import eventually
from tests.support.fakebroker import FakeBroker
from tests.support.fakeclients import installed
from tests.support.service import free_port
from tests.support.stack import Servers
from tests.support.topics import adelete_topics, read_topic

pytestmark = pytest.mark.anyio

_names = count(1)


class Broker(Protocol):
    """A broker, real or not, as an administrator has it."""

    @property
    def address(self) -> str: ...

    async def make(self, topic: str, partitions: int, configs: Mapping[str, str]) -> None: ...

    async def delete(self, topic: str) -> None: ...

    def pause(self) -> None: ...

    async def resume(self) -> None: ...


class Real:
    def __init__(self, servers: Servers) -> None:
        self.address = servers.kafka
        self._processes = servers.processes

    async def make(self, topic: str, partitions: int, configs: Mapping[str, str]) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=dict(configs))])
        await admin.close()
        await eventually(lambda: partition_count(self.address, topic))

    async def delete(self, topic: str) -> None:
        await adelete_topics(self.address, [topic])

    def pause(self) -> None:
        self._processes.pause("kafka")

    async def resume(self) -> None:
        self._processes.resume("kafka")
        await eventually(lambda: self._processes.status()["ready"], 60)


class Fake:
    address = "fake:9092"

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker

    async def make(self, topic: str, partitions: int, configs: Mapping[str, str]) -> None:
        self._broker.create(topic, partitions, configs)

    async def delete(self, topic: str) -> None:
        self._broker.delete_topic(topic)

    def pause(self) -> None:
        self._broker.stuck = True

    async def resume(self) -> None:
        self._broker.stuck = False


@pytest.fixture(params=["real", "fake"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    if request.param == "real":
        yield Real(request.getfixturevalue("servers"))
    else:
        with installed(FakeBroker()) as fake:
            yield Fake(fake)


@pytest.fixture
async def topic(broker: Broker) -> str:
    """A new topic of two partitions."""
    made = Topic(f"test-{next(_names)}")
    await ensure_topics(Base(kafka=broker.address, partitions=2), [made])
    return made.name


@pytest.fixture
async def producer(broker: Broker, topic: str) -> AsyncIterator[Producer]:
    made = await Producer.open(broker.address, f"keyledger/{topic}")
    yield made
    await made.abandon()


def _messages(topic: str, *values: str, partition: int = 0) -> list[Message]:
    return [Message(Partition(topic, partition), b"key", value.encode()) for value in values]


async def _values(kafka: str, topic: str, count: int, partition: int = 0) -> list[str]:
    """What is read once `count` records are: a commit returns before its markers are written."""

    async def enough() -> list[str]:
        records = (await read_topic(kafka, topic))[partition]
        return [(record.value or b"").decode() for record in records] if len(records) >= count else []

    return await eventually(enough)


@pytest.mark.parametrize(
    ("key", "number"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_a_key_s_partition_is_the_one_of_kafka_s_own_clients(key: bytes, number: int) -> None:
    """The numbers are those of Kafka's own test of its murmur2 (UtilsTest.testMurmur2)."""
    for partitions in (1, 2, 6, 1000):
        assert partition_for(key, partitions) == (number & 0x7FFFFFFF) % partitions


async def test_topics_are_made_once_and_keep_their_partitions(broker: Broker) -> None:
    topic = Topic(f"test-{next(_names)}", {"cleanup.policy": "compact"})
    settings = Base(kafka=broker.address, partitions=3)
    assert await partition_count(broker.address, topic.name) == 0
    await asyncio.gather(*(ensure_topics(settings, [topic]) for _ in range(4)))
    await ensure_topics(settings, [topic])
    assert await partition_count(broker.address, topic.name) == 3
    with pytest.raises(PartitionsChanged, match="has 3 partitions, not 4"):
        await ensure_topics(Base(kafka=broker.address, partitions=4), [topic])


async def test_a_topic_that_can_t_be_made_is_said_so(broker: Broker) -> None:
    with pytest.raises(KafkaUnavailable, match="could not be made"):
        await ensure_topics(Base(kafka=broker.address, replication=5), [Topic(f"test-{next(_names)}")])


async def test_a_topic_made_anew_has_another_id(broker: Broker) -> None:
    topic = Topic(f"test-{next(_names)}")
    settings = Base(kafka=broker.address, partitions=2)
    made = await ensure_topics(settings, [topic])
    assert made == await identify(broker.address, [topic.name, "nowhere"])
    assert made.id == await cluster_id(broker.address)
    assert made.topics[topic.name].partitions == 2
    await broker.delete(topic.name)
    assert (await identify(broker.address, [topic.name])).topics == {}
    again = await ensure_topics(settings, [topic])
    assert again.topics[topic.name].id != made.topics[topic.name].id


_HOUR_MS = 3600_000


@pytest.mark.parametrize("existing", [True, False], ids=["a topic that was there", "a new topic"])
async def test_records_from_a_wrong_clock_are_taken_with_the_broker_s_time(broker: Broker, existing: bool) -> None:
    topic = Topic(f"test-{next(_names)}", {"retention.ms": str(24 * _HOUR_MS)})
    if existing:
        await broker.make(topic.name, 1, {"retention.ms": "777000"})
    await ensure_topics(Base(kafka=broker.address, partitions=1), [topic])
    producer = await Producer.open(broker.address)
    now = int(time.time() * 1000)
    try:
        for clock in (now + 2 * _HOUR_MS, now - 10 * 24 * _HOUR_MS):
            batch = producer.batch()
            batch.append(timestamp=clock, key=b"key", value=b"{}", headers=[])
            await producer.send(batch, Partition(topic.name, 0))
    finally:
        await producer.abandon()
    records = (await read_topic(broker.address, topic.name))[0]
    assert len(records) == 2
    assert all(abs(record.timestamp - now) < 600_000 for record in records)


async def test_a_cluster_has_one_name(broker: Broker) -> None:
    assert await cluster_id(broker.address) == await cluster_id(broker.address) != ""


async def test_a_transaction_tells_where_each_partition_ends(broker: Broker, topic: str, producer: Producer) -> None:
    messages = _messages(topic, "a", "b") + _messages(topic, "c", partition=1)
    assert await producer.transaction(messages) == {Partition(topic, 0): 2, Partition(topic, 1): 1}
    assert await _values(broker.address, topic, 2) == ["a", "b"]
    assert await _values(broker.address, topic, 1, partition=1) == ["c"]


async def test_all_partitions_join_a_transaction_at_once_though_their_topics_were_not_known(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, other = (Topic(f"test-{next(_names)}") for _ in range(2))
    await ensure_topics(Base(kafka=servers.kafka, partitions=2), [known, other])
    producer = await Producer.open(servers.kafka, f"keyledger/{known.name}")
    try:
        await producer.transaction(_messages(known.name, "a"))
        producer._client.client.cluster._partitions.pop(other.name, None)
        joining: list[set[Partition]] = []
        sender = producer._client._sender
        join = sender._do_add_partitions_to_txn
        monkeypatch.setattr(sender, "_do_add_partitions_to_txn", lambda tps: joining.append({*tps}) or join(tps))
        await producer.transaction(_messages(known.name, "b") + _messages(other.name, "c", partition=1))
        assert joining[0] == {Partition(known.name, 0), Partition(other.name, 1)}
    finally:
        await producer.abandon()


async def test_what_was_not_committed_is_not_read(broker: Broker, topic: str, producer: Producer) -> None:
    await producer.transaction(_messages(topic, "before"))
    client = producer._client
    await client.begin_transaction()
    await producer._write(Partition(topic, 0), _messages(topic, "left open"))
    assert await _values(broker.address, topic, 1) == ["before"]
    successor = await Producer.open(broker.address, f"keyledger/{topic}")
    await successor.transaction(_messages(topic, "after"))
    await successor.abandon()
    assert await _values(broker.address, topic, 2) == ["before", "after"]


async def test_a_partition_that_became_shorter_gets_nothing(broker: Broker, topic: str, producer: Producer) -> None:
    ends = await producer.transaction(_messages(topic, "a", "b"))
    with pytest.raises(KafkaUnavailable, match="shorter than before"):
        await producer.transaction(_messages(topic, "c"), {Partition(topic, 0): 1000})
    await producer.abandon()
    again = await Producer.open(broker.address, f"keyledger/{topic}")
    await again.transaction(_messages(topic, "d"), ends)
    await again.abandon()
    assert await _values(broker.address, topic, 3) == ["a", "b", "d"]


async def test_the_later_producer_of_an_id_fences_the_earlier(broker: Broker, topic: str, producer: Producer) -> None:
    await producer.transaction(_messages(topic, "a"))
    successor = await Producer.open(broker.address, f"keyledger/{topic}")
    with pytest.raises(Fenced):
        await producer.transaction(_messages(topic, "zombie"))
    await successor.transaction(_messages(topic, "b"))
    await successor.abandon()
    assert await _values(broker.address, topic, 2) == ["a", "b"]


async def test_batches_are_sent_in_order(broker: Broker, topic: str) -> None:
    producer = await Producer.open(broker.address)
    try:
        for number in range(3):
            batch = producer.batch()
            for each in range(4):
                assert batch.append(timestamp=None, key=b"key", value=b"%d" % (4 * number + each), headers=[])
            assert await producer.send(batch, Partition(topic, 0)) == 4 * number
    finally:
        await producer.abandon()
    assert await _values(broker.address, topic, 12) == [str(number) for number in range(12)]


async def test_nothing_behind_a_transaction_still_open_is_read(broker: Broker, topic: str, producer: Producer) -> None:
    await producer.transaction(_messages(topic, "before"))
    client = producer._client
    await client.begin_transaction()
    await producer._write(Partition(topic, 0), _messages(topic, "left open"))
    plain = await Producer.open(broker.address)
    try:
        batch = plain.batch()
        batch.append(timestamp=None, key=b"key", value=b"behind it", headers=[])
        assert await plain.send(batch, Partition(topic, 0)) == 3
        assert await _values(broker.address, topic, 1) == ["before"]
        await client.commit_transaction()
        assert await _values(broker.address, topic, 3) == ["before", "left open", "behind it"]
    finally:
        await plain.abandon()


async def test_a_reader_goes_on_when_more_comes(broker: Broker, topic: str, producer: Producer) -> None:
    reader = await Reader.open(broker.address, [topic])
    try:
        for number in (0, 1):
            reader.seek(Partition(topic, number), 0)
        assert await reader.fetch(timeout_ms=100) == {}
        waiting = asyncio.ensure_future(reader.fetch(timeout_ms=20_000))
        await producer.transaction(_messages(topic, "a", partition=1))
        assert [r.value for records in (await waiting).values() for r in records] == [b"a"]
        reader.pause(Partition(topic, 1))
        await producer.transaction(_messages(topic, "b", partition=1))
        assert await reader.fetch(timeout_ms=300) == {}
    finally:
        await reader.close()


async def test_what_there_is_comes_in_one_fetch_up_to_so_many(broker: Broker, topic: str, producer: Producer) -> None:
    """Though it is unpacked piece by piece."""
    for number in (0, 1):
        await producer.transaction(_messages(topic, *map(str, range(700)), partition=number))
    reader = await Reader.open(broker.address, [topic])
    partitions = [Partition(topic, number) for number in (0, 1)]
    try:
        for partition in partitions:
            reader.seek(partition, 0)
        await eventually(lambda: _bounds(reader, partitions[1], 701))
        read: dict[Partition, list[int]] = {partition: [] for partition in partitions}
        fetches = []
        while sum(map(len, read.values())) < 1400:
            found = await reader.fetch(timeout_ms=1000, max_records=600)
            fetches.append(sum(map(len, found.values())))
            for partition, records in found.items():
                read[partition] += [int(record.value or b"") for record in records]
        assert max(fetches) == 600
        assert read == {partition: list(range(700)) for partition in partitions}
    finally:
        await reader.close()


async def test_headers_and_deletions_come_as_they_were_sent(broker: Broker, topic: str, producer: Producer) -> None:
    await producer.transaction([*_messages(topic, "a"), Message(Partition(topic, 0), b"key", None)])
    event, deletion = (await eventually(lambda: _records(broker.address, topic, 2)))[0]
    assert (event.key, event.value, deletion.key, deletion.value) == (b"key", b"a", b"key", None)


async def _records(kafka: str, topic: str, count: int) -> dict[int, list[Record]] | None:
    found = await read_topic(kafka, topic)
    return found if sum(map(len, found.values())) >= count else None


async def test_a_reader_passes_over_holes(broker: Broker, topic: str, producer: Producer) -> None:
    """Commit markers take offsets: the position moves over them to the end."""
    for value in "abc":
        await producer.transaction(_messages(topic, value))
    partition = Partition(topic, 0)
    reader = await Reader.open(broker.address, [topic])
    try:
        assert reader.assignment() == {partition, Partition(topic, 1)}
        bounds = await eventually(lambda: _bounds(reader, partition, 6))
        assert bounds == (0, 6)
        begin, end = bounds
        reader.seek(partition, begin)
        reader.seek(Partition(topic, 1), 0)
        read: list[int] = []

        async def at_end() -> bool:
            read.extend(r.offset for records in (await reader.fetch(timeout_ms=100)).values() for r in records)
            return await reader.position(partition) == end

        await eventually(at_end)
        assert read == [0, 2, 4]
    finally:
        await reader.close()


async def _bounds(reader: Reader, partition: Partition, end: int) -> tuple[int, int] | None:
    bounds = (await reader.bounds([partition]))[partition]
    return bounds if bounds[1] >= end else None


async def test_a_position_outside_of_the_log_is_named(broker: Broker, topic: str, producer: Producer) -> None:
    await producer.transaction(_messages(topic, "a"))
    reader = await Reader.open(broker.address, [topic])
    try:
        reader.seek(Partition(topic, 0), 500)
        reader.seek(Partition(topic, 1), 0)

        async def refused() -> frozenset[Partition]:
            try:
                await reader.fetch(timeout_ms=200)
            except OutOfRange as error:
                return error.partitions
            return frozenset()

        assert await eventually(refused) == {Partition(topic, 0)}
    finally:
        await reader.close()


async def test_a_topic_that_is_not_there_yet_is_said_so(broker: Broker) -> None:
    with pytest.raises(KafkaUnavailable, match="no topic nowhere yet"):
        await Reader.open(broker.address, ["nowhere"])


@pytest.mark.parametrize("what", ["producer", "transactional producer", "reader", "admin"])
async def test_without_kafka_everything_says_so_in_time(what: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    calls = {
        "producer": lambda: Producer.open(nowhere),
        "transactional producer": lambda: Producer.open(nowhere, "keyledger/nowhere"),
        "reader": lambda: Reader.open(nowhere, ["x"]),
        "admin": lambda: cluster_id(nowhere),
    }
    with pytest.raises(KafkaUnavailable):
        await asyncio.wait_for(calls[what](), 40)


async def test_kafka_that_stops_within_a_transaction_is_noticed_and_the_next_begins_clean(
    broker: Broker, topic: str, producer: Producer
) -> None:
    await producer.transaction(_messages(topic, "a"))
    broker.pause()
    try:
        with pytest.raises(KafkaUnavailable):
            await asyncio.wait_for(producer.transaction(_messages(topic, "b")), 20)
        await asyncio.wait_for(producer.abandon(), 10)
    finally:
        await broker.resume()

    async def sent() -> bool:
        again = await Producer.open(broker.address, f"keyledger/{topic}")
        try:
            return bool(await again.transaction(_messages(topic, "c")))
        finally:
            await again.abandon()

    await eventually(sent, 60)
    assert await _values(broker.address, topic, 2) in (["a", "c"], ["a", "b", "c"])
