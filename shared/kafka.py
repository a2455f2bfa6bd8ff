"""The one place that knows the Kafka client (aiokafka). Everything waits with a deadline and fails as `KafkaUnavailable`.

A client that failed is thrown away and made anew by its caller: after an error neither the producer's sequence numbers
nor the consumer's positions can be trusted (aiokafka issues 1017, 738, 718, 847).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    CommitFailedError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    ProducerFenced,
    TopicAlreadyExistsError,
)
from aiokafka.producer import sender
from aiokafka.producer.message_accumulator import BatchBuilder as Batch
from aiokafka.structs import ConsumerRecord
from aiokafka.structs import TopicPartition as Partition

from shared.events.topics import Topic
from shared.settings import Base, PartitionsChanged

__all__ = ["Batch", "Fenced", "KafkaUnavailable", "Message", "Partition", "Producer", "Reader", "Record"]

Record = ConsumerRecord[bytes, bytes]

_DEADLINE = 15.0
_TRANSACTION_MS = 10_000
_STUCK_AFTER = 15.0

# Until a transaction's markers are written the next one is told to come again: the client waits 20 ms, they take two.
sender.BACKOFF_OVERRIDE = 0.003
_REBALANCE = 60.0


class KafkaUnavailable(Exception):  # noqa: N818 - a state, not a mistake
    """Kafka did not answer in time, or answered with an error; the client that saw it is of no further use."""


class Fenced(KafkaUnavailable):
    """Another producer has taken the transactional id: this process is a zombie."""


class Message(NamedTuple):
    """A record to be written to an explicit partition."""

    partition: Partition
    key: bytes
    value: bytes | None


@asynccontextmanager
async def _guarded(what: str, deadline: float = _DEADLINE) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline):
            yield
    except ProducerFenced as error:
        raise Fenced(f"{what}: fenced") from error
    except (KafkaError, OSError, TimeoutError, AssertionError) as error:
        raise KafkaUnavailable(f"{what}: {type(error).__name__} {error}") from error


async def ensure_topics(settings: Base, topics: Iterable[Topic]) -> None:
    """Makes the topics that are missing. `PartitionsChanged` when one exists with another number of partitions."""
    async with _admin(settings.kafka) as admin:
        present = set(await admin.list_topics())
        missing = [topic for topic in topics if topic.name not in present]
        common = {"min.insync.replicas": str(settings.min_insync_replicas), "unclean.leader.election.enable": "false"}
        for topic in missing:
            new = NewTopic(topic.name, settings.partitions, settings.replication, topic_configs=common | topic.config)
            with suppress(TopicAlreadyExistsError):
                response: Any = await admin.create_topics([new])
                for _name, code, *message in response.topic_errors:
                    if code not in (0, TopicAlreadyExistsError.errno):
                        raise KafkaUnavailable(f"topic {topic.name} could not be made: {code} {message}")
    for topic in topics:
        count = await partition_count(settings.kafka, topic.name)
        if count not in (0, settings.partitions):
            raise PartitionsChanged(
                f"topic {topic.name} has {count} partitions, not {settings.partitions}; it can't change"
            )


async def partition_count(bootstrap: str, topic: str) -> int:
    """How many partitions the topic has; 0 when it does not exist."""
    async with _admin(bootstrap) as admin:
        for found in await admin.describe_topics([topic]):
            return len(found["partitions"])
    return 0


async def cluster_id(bootstrap: str) -> str:
    """The cluster's identity: another one means that offsets of before mean nothing."""
    async with _admin(bootstrap) as admin:
        return str((await admin.describe_cluster())["cluster_id"])


async def still_cluster(bootstrap: str, cluster: str) -> None:
    """Raises `KafkaUnavailable` when it is not the cluster with this id any more that is at the address."""
    if await cluster_id(bootstrap) != cluster:
        raise KafkaUnavailable("another Kafka cluster is there now")


@asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=int(_DEADLINE * 1000))
    async with _guarded("admin", 2 * _DEADLINE):
        try:
            await admin.start()
            yield admin
        finally:
            with suppress(Exception):
                await admin.close()


class Producer:
    """An idempotent or, with a `transactional_id`, transactional producer; acks from all in-sync replicas."""

    def __init__(self, client: AIOKafkaProducer) -> None:
        self._client = client

    @classmethod
    async def open(cls, bootstrap: str, transactional_id: str | None = None) -> Self:
        """Connects. A transactional id fences every earlier producer that used it."""
        client = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            acks="all",
            enable_idempotence=True,
            transactional_id=transactional_id,
            transaction_timeout_ms=_TRANSACTION_MS,
            linger_ms=0,
            max_batch_size=512 * 1024,
            max_request_size=4 * 1024 * 1024,
            request_timeout_ms=60_000,
        )
        self = cls(client)
        try:
            async with _guarded("producer"):
                await client.start()
        except BaseException:
            await self.abandon()
            raise
        return self

    async def transaction(
        self, messages: Sequence[Message], held: Mapping[Partition, int] | None = None
    ) -> dict[Partition, int]:
        """Writes all or nothing; returns, by partition, the offset after its last message.

        Commits nothing when a partition ends before the offset that `held` has for it: it lost its tail, or was made
        anew, and what it lost has to come first. After any error the transaction stays open until the next producer
        of the transactional id, or the broker's time limit, ends it: an abort could wait for as long as Kafka is away.
        """
        first: dict[Partition, int] = {}
        ends: dict[Partition, int] = {}
        async with _guarded("transaction", _TRANSACTION_MS / 1000):
            await self._client.begin_transaction()
            sent = [await self._client.send(p.topic, value, key, partition=p.partition) for p, key, value in messages]
            for at in await asyncio.gather(*sent):
                partition = Partition(at.topic, at.partition)
                first.setdefault(partition, at.offset)
                ends[partition] = at.offset + 1
            if short := [str(p) for p, offset in first.items() if offset < (held or {}).get(p, 0)]:
                raise KafkaUnavailable(f"shorter than before: {', '.join(short)}")
            await self._client.commit_transaction()
        return ends

    def batch(self) -> Batch:
        """An empty batch: `append(timestamp=ms, key=, value=, headers=)` gives None when it is full."""
        return self._client.create_batch()

    async def send(self, batch: Batch, partition: Partition) -> int:
        """Writes the batch; returns the offset of its first record when all in-sync replicas have it."""
        async with _guarded("send", 60.0):
            future = await self._client.send_batch(batch, partition.topic, partition=partition.partition)
            return int((await future).offset)

    async def abandon(self) -> None:
        """Drops what is unsent and closes: after an error a flush could only send it out of order."""
        self._client._closed = True
        with suppress(Exception, asyncio.CancelledError):
            async with asyncio.timeout(2.0):
                await self._client._sender.close()
        with suppress(Exception):
            async with asyncio.timeout(2.0):
                await self._client.client.close()


class _Listener(ConsumerRebalanceListener):
    def __init__(self, revoked: Callable[[Collection[Partition]], None]) -> None:
        self._revoked = revoked

    async def on_partitions_revoked(self, revoked: Collection[Partition]) -> None:  # type: ignore[bad-override]
        self._revoked(revoked)

    async def on_partitions_assigned(self, assigned: Collection[Partition]) -> None:  # type: ignore[bad-override]
        """Nothing: aiokafka calls this after records of the partition may have been delivered (issue 738)."""


class Reader:
    """A consumer of committed records that keeps no position of its own: its caller seeks each partition that it gets.

    With a group, partitions come and go (`assignment()`); without, all partitions of the topics are read.
    """

    def __init__(self, client: AIOKafkaConsumer) -> None:
        self._client = client
        self._moved = time.monotonic()

    @classmethod
    async def open(
        cls,
        bootstrap: str,
        topics: Sequence[str],
        *,
        group: str | None = None,
        revoked: Callable[[Collection[Partition]], None] = lambda _: None,
    ) -> Self:
        """Connects; `KafkaUnavailable` when a topic does not exist (yet)."""
        client = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_partition_fetch_bytes=2 * 1024 * 1024,
            fetch_max_wait_ms=250,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            max_poll_interval_ms=120_000,
            request_timeout_ms=30_000,
            retry_backoff_ms=100,
            # A topic that vanished and was made anew is noticed by no error in a group, only by looking.
            metadata_max_age_ms=10_000,
        )
        self = cls(client)
        try:
            async with _guarded("consumer"):
                await client.start()
                present = await client.topics()
                if missing := set(topics) - present:
                    raise KafkaUnavailable(f"no topic {', '.join(sorted(missing))} yet")
                if group:
                    client.subscribe(topics, listener=_Listener(revoked))
                else:
                    await self._assign(topics)
        except BaseException:
            await self.close()
            raise
        return self

    async def _assign(self, topics: Sequence[str]) -> None:
        partitions: list[Partition] = []
        for topic in topics:
            numbers = self._client.partitions_for_topic(topic)
            while not numbers:
                await asyncio.sleep(0.05)
                await self._client._client.force_metadata_update()
                numbers = self._client.partitions_for_topic(topic)
            partitions += [Partition(topic, number) for number in sorted(numbers)]
        self._client.assign(partitions)

    def assignment(self) -> frozenset[Partition]:
        """The partitions that are this reader's now."""
        return frozenset(self._client.assignment())

    def seek(self, partition: Partition, offset: int) -> None:
        """Reads on from `offset`. A partition that is no longer assigned is left alone."""
        with suppress(Exception):
            self._client.seek(partition, offset)

    def pause(self, partition: Partition) -> None:
        """Reads no further in the partition as long as this reader has it."""
        with suppress(Exception):
            self._client.pause(partition)

    def end(self, partition: Partition) -> int:
        """The offset after the last committed record, as of the last fetch; 0 before any."""
        with suppress(Exception):
            return int(self._client.last_stable_offset(partition) or 0)
        return 0

    async def bounds(self, partitions: Collection[Partition]) -> dict[Partition, tuple[int, int]]:
        """By partition: the first offset that is left, and the one after the last committed record."""
        async with _guarded("offsets"):
            first = await self._client.beginning_offsets(list(partitions))
            last = await self._client.end_offsets(list(partitions))
        return {partition: (first[partition], last[partition]) for partition in partitions}

    async def position(self, partition: Partition) -> int:
        """The offset that will be read next; it moves over holes of compaction and transactions."""
        async with _guarded("position"):
            return int(await self._client.position(partition))

    async def fetch(self, *, timeout_ms: int, max_records: int = 5000) -> dict[Partition, list[Record]]:
        """What there is, by partition, within `timeout_ms`.

        Raises `OutOfRange` naming the partitions whose position is outside of the log, `KafkaUnavailable` when nothing
        came for some seconds though there is more: the client is stuck.
        """
        try:
            # A group that is being formed is waited for, whatever timeout_ms says. Cancelling loses no record:
            # positions move only after the last await.
            async with asyncio.timeout(timeout_ms / 1000 + _REBALANCE):
                found = await self._client.getmany(timeout_ms=timeout_ms, max_records=max_records)
        except TimeoutError:
            raise KafkaUnavailable("fetch: the group was not formed in time") from None
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise OutOfRange(_partitions_of(error)) from error
        except KafkaError as error:
            raise KafkaUnavailable(f"fetch: {error}") from error
        if found:
            self._moved = time.monotonic()
        elif time.monotonic() - self._moved > _STUCK_AFTER:
            await self._check_stuck()
        return found

    async def _check_stuck(self) -> None:
        for partition, (_, end) in (await self.bounds(self.assignment())).items():
            if await self.position(partition) < end:
                raise KafkaUnavailable(f"no progress on {partition.topic}/{partition.partition} though there is more")
        self._moved = time.monotonic()

    async def commit(self, offsets: dict[Partition, int]) -> None:
        """Tells the group how far it is: a hint for lag tools only, so its failure is nobody's concern."""
        with suppress(CommitFailedError, KafkaError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._client.commit(offsets)

    async def close(self) -> None:
        """Leaves the group and closes, within some seconds whatever Kafka does."""
        with suppress(Exception, asyncio.CancelledError):
            async with asyncio.timeout(5.0):
                await self._client.stop()


class OutOfRange(KafkaUnavailable):
    """Positions outside of the log: what was there has expired, or the broker lost its tail."""

    def __init__(self, partitions: frozenset[Partition]) -> None:
        super().__init__(f"out of range: {sorted(partitions)}")
        self.partitions = partitions


def _partitions_of(error: KafkaError) -> frozenset[Partition]:
    found = error.args[0] if error.args else ()
    return frozenset([found]) if isinstance(found, Partition) else frozenset(found)
