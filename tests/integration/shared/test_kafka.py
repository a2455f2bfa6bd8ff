"""The plumbing around the Kafka client, against a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count

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
    cluster_id,
    ensure_topics,
    identify,
    partition_count,
)
from shared.partitions import partition_for
from shared.settings import Base
from tests.support.eventually import eventually
from tests.support.service import free_port
from tests.support.stack import Servers
from tests.support.topics import adelete_topics, read_topic

pytestmark = pytest.mark.anyio

_names = count(1)


@pytest.fixture
async def topic(servers: Servers) -> str:
    """A new topic of two partitions."""
    made = Topic(f"test-{next(_names)}")
    await ensure_topics(Base(kafka=servers.kafka, partitions=2), [made])
    return made.name


@pytest.fixture
async def producer(servers: Servers, topic: str) -> AsyncIterator[Producer]:
    made = await Producer.open(servers.kafka, f"keyledger/{topic}")
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


async def test_topics_are_made_once_and_keep_their_partitions(servers: Servers) -> None:
    topic = Topic(f"test-{next(_names)}", {"cleanup.policy": "compact"})
    settings = Base(kafka=servers.kafka, partitions=3)
    assert await partition_count(servers.kafka, topic.name) == 0
    await asyncio.gather(*(ensure_topics(settings, [topic]) for _ in range(4)))
    await ensure_topics(settings, [topic])
    assert await partition_count(servers.kafka, topic.name) == 3
    with pytest.raises(ValueError, match="has 3 partitions, not 4"):
        await ensure_topics(Base(kafka=servers.kafka, partitions=4), [topic])


async def test_a_topic_that_can_t_be_made_is_said_so(servers: Servers) -> None:
    with pytest.raises(KafkaUnavailable, match="could not be made"):
        await ensure_topics(Base(kafka=servers.kafka, replication=5), [Topic(f"test-{next(_names)}")])


async def test_a_topic_made_anew_has_another_id(servers: Servers) -> None:
    topic = Topic(f"test-{next(_names)}")
    settings = Base(kafka=servers.kafka, partitions=2)
    made = await ensure_topics(settings, [topic])
    assert made == await identify(servers.kafka, [topic.name, "nowhere"])
    assert made.id == await cluster_id(servers.kafka)
    assert made.topics[topic.name].partitions == 2
    await adelete_topics(servers.kafka, [topic.name])
    assert (await identify(servers.kafka, [topic.name])).topics == {}
    again = await ensure_topics(settings, [topic])
    assert again.topics[topic.name].id != made.topics[topic.name].id


_HOUR_MS = 3600_000


@pytest.mark.parametrize("existing", [True, False], ids=["a topic that was there", "a new topic"])
async def test_records_from_a_wrong_clock_are_taken_with_the_broker_s_time(servers: Servers, existing: bool) -> None:
    topic = Topic(f"test-{next(_names)}", {"retention.ms": str(24 * _HOUR_MS)})
    if existing:
        admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
        await admin.start()
        await admin.create_topics([NewTopic(topic.name, 1, 1, topic_configs={"retention.ms": "777"})])
        await admin.close()
        await eventually(lambda: partition_count(servers.kafka, topic.name))
    await ensure_topics(Base(kafka=servers.kafka, partitions=1), [topic])
    producer = await Producer.open(servers.kafka)
    now = int(time.time() * 1000)
    try:
        for clock in (now + 2 * _HOUR_MS, now - 10 * 24 * _HOUR_MS):
            batch = producer.batch()
            batch.append(timestamp=clock, key=b"key", value=b"{}", headers=[])
            await producer.send(batch, Partition(topic.name, 0))
    finally:
        await producer.abandon()
    records = (await read_topic(servers.kafka, topic.name))[0]
    assert len(records) == 2
    assert all(abs(record.timestamp - now) < 600_000 for record in records)


async def test_a_cluster_has_one_name(servers: Servers) -> None:
    assert await cluster_id(servers.kafka) == await cluster_id(servers.kafka) != ""


async def test_a_transaction_tells_where_each_partition_ends(servers: Servers, topic: str, producer: Producer) -> None:
    messages = _messages(topic, "a", "b") + _messages(topic, "c", partition=1)
    assert await producer.transaction(messages) == {Partition(topic, 0): 2, Partition(topic, 1): 1}
    assert await _values(servers.kafka, topic, 2) == ["a", "b"]
    assert await _values(servers.kafka, topic, 1, partition=1) == ["c"]


async def test_what_was_not_committed_is_not_read(servers: Servers, topic: str, producer: Producer) -> None:
    await producer.transaction(_messages(topic, "before"))
    client = producer._client
    await client.begin_transaction()
    await (await client.send(topic, b"left open", b"key", partition=0))
    assert await _values(servers.kafka, topic, 1) == ["before"]
    successor = await Producer.open(servers.kafka, f"keyledger/{topic}")
    await successor.transaction(_messages(topic, "after"))
    await successor.abandon()
    assert await _values(servers.kafka, topic, 2) == ["before", "after"]


async def test_a_partition_that_became_shorter_gets_nothing(servers: Servers, topic: str, producer: Producer) -> None:
    ends = await producer.transaction(_messages(topic, "a", "b"))
    with pytest.raises(KafkaUnavailable, match="shorter than before"):
        await producer.transaction(_messages(topic, "c"), {Partition(topic, 0): 1000})
    await producer.abandon()
    again = await Producer.open(servers.kafka, f"keyledger/{topic}")
    await again.transaction(_messages(topic, "d"), ends)
    await again.abandon()
    assert await _values(servers.kafka, topic, 3) == ["a", "b", "d"]


async def test_the_later_producer_of_an_id_fences_the_earlier(servers: Servers, topic: str, producer: Producer) -> None:
    await producer.transaction(_messages(topic, "a"))
    successor = await Producer.open(servers.kafka, f"keyledger/{topic}")
    with pytest.raises(Fenced):
        await producer.transaction(_messages(topic, "zombie"))
    await successor.transaction(_messages(topic, "b"))
    await successor.abandon()
    assert await _values(servers.kafka, topic, 2) == ["a", "b"]


async def test_batches_are_sent_in_order(servers: Servers, topic: str) -> None:
    producer = await Producer.open(servers.kafka)
    try:
        for number in range(3):
            batch = producer.batch()
            for each in range(4):
                assert batch.append(timestamp=None, key=b"key", value=b"%d" % (4 * number + each), headers=[])
            assert await producer.send(batch, Partition(topic, 0)) == 4 * number
    finally:
        await producer.abandon()
    assert await _values(servers.kafka, topic, 12) == [str(number) for number in range(12)]


async def test_a_reader_passes_over_holes(servers: Servers, topic: str, producer: Producer) -> None:
    """Commit markers take offsets: the position moves over them to the end."""
    for value in "abc":
        await producer.transaction(_messages(topic, value))
    partition = Partition(topic, 0)
    reader = await Reader.open(servers.kafka, [topic])
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


async def test_a_position_outside_of_the_log_is_named(servers: Servers, topic: str, producer: Producer) -> None:
    await producer.transaction(_messages(topic, "a"))
    reader = await Reader.open(servers.kafka, [topic])
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


async def test_a_topic_that_is_not_there_yet_is_said_so(servers: Servers) -> None:
    with pytest.raises(KafkaUnavailable, match="no topic nowhere yet"):
        await Reader.open(servers.kafka, ["nowhere"])


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
    servers: Servers, topic: str, producer: Producer
) -> None:
    await producer.transaction(_messages(topic, "a"))
    servers.processes.pause("kafka")
    try:
        with pytest.raises(KafkaUnavailable):
            await asyncio.wait_for(producer.transaction(_messages(topic, "b")), 20)
        await asyncio.wait_for(producer.abandon(), 10)
    finally:
        servers.processes.resume("kafka")
    await eventually(lambda: servers.processes.status()["ready"], 60)

    async def sent() -> bool:
        again = await Producer.open(servers.kafka, f"keyledger/{topic}")
        try:
            return bool(await again.transaction(_messages(topic, "c")))
        finally:
            await again.abandon()

    await eventually(sent, 60)
    assert await _values(servers.kafka, topic, 2) in (["a", "c"], ["a", "b", "c"])
