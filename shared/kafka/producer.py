"""Writing to Kafka: transactions of the relays and publishers, batches of the edge's agent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Self

from aiokafka import AIOKafkaProducer
from aiokafka.producer import sender
from aiokafka.producer.message_accumulator import BatchBuilder as Batch
from aiokafka.structs import TopicPartition as Partition

from shared.events import CONTENT_TYPE
from shared.kafka.errors import KafkaUnavailable, guarded

_EVENT = [CONTENT_TYPE]
_TRANSACTION = 10.0
# What every broker takes that was not told otherwise. One batch of a partition is on its way at a time, so the larger it is
# the less there are waits for disks.
_BATCH_BYTES = 1_000_000
# The broker's own limit is no shorter than the longest patience: a slow one must not abort what is only under way. What
# a process that died left open is ended at once by the next producer of its id.
_TRANSACTION_MS = 60_000

# Until a transaction's markers are written the next one is told to come again: the client waits 20 ms, they take two.
sender.BACKOFF_OVERRIDE = 0.003


class Message(NamedTuple):
    """A record to be written to an explicit partition."""

    partition: Partition
    key: bytes
    value: bytes | None


class Producer:
    """An idempotent or, with a `transactional_id`, transactional producer; acks from all in-sync replicas."""

    def __init__(self, client: AIOKafkaProducer, patience: float) -> None:
        self._client = client
        self._patience = patience
        self.committed = 0

    @classmethod
    async def open(cls, bootstrap: str, transactional_id: str | None = None, *, patience: float = _TRANSACTION) -> Self:
        """Connects. A transactional id fences every earlier producer that used it; its transactions may take `patience` s."""
        client = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            acks="all",
            enable_idempotence=True,
            transactional_id=transactional_id,
            transaction_timeout_ms=_TRANSACTION_MS,
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            max_request_size=4 * 1024 * 1024,
            request_timeout_ms=60_000,
        )
        self = cls(client, patience)
        try:
            async with guarded("producer"):
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
        by_partition: dict[Partition, list[Message]] = {}
        for message in messages:
            by_partition.setdefault(message.partition, []).append(message)
        async with guarded("transaction", self._patience):
            await self._client.begin_transaction()
            # So that all join it by one request: a topic that has to be asked for first would come with a second one.
            for topic in {partition.topic for partition in by_partition}:
                await self._client.partitions_for(topic)
            written = await asyncio.gather(*(self._write(*each) for each in by_partition.items()))
            if short := [str(p) for p, (first, _) in written if first < (held or {}).get(p, 0)]:
                raise KafkaUnavailable(f"shorter than before: {', '.join(short)}")
            await self._client.commit_transaction()
        self.committed += 1
        return {partition: end for partition, (_, end) in written}

    async def _write(self, partition: Partition, messages: Sequence[Message]) -> tuple[Partition, tuple[int, int]]:
        """Writes into the transaction, batch after batch; between which offsets they lie.

        By the client's way of sending message by message one took fifteen times as long.
        """
        offsets: list[int] = []
        sent = 0
        while sent < len(messages):
            batch = self.batch()
            while sent < len(messages) and _append(batch, messages[sent]):
                sent += 1
            future = await self._client.send_batch(batch, partition.topic, partition=partition.partition)
            offsets += [(at := int((await future).offset)), at + batch.record_count()]
        return partition, (offsets[0], offsets[-1])

    def batch(self) -> Batch:
        """An empty batch: `append(timestamp=ms, key=, value=, headers=)` gives None when it is full."""
        return self._client.create_batch()

    async def send(self, batch: Batch, partition: Partition) -> int:
        """Writes the batch; returns the offset of its first record when all in-sync replicas have it."""
        async with guarded("send", 60.0):
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


def _append(batch: Batch, message: Message) -> bool:
    """Whether there was room for it."""
    # A deletion has no event in it.
    headers = [] if message.value is None else _EVENT
    return batch.append(timestamp=None, key=message.key, value=message.value, headers=headers) is not None
