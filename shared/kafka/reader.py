"""Reading from Kafka: committed records only, from where the caller says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, Self, cast

from aiokafka import AIOKafkaConsumer, conn
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import TopicPartition as Partition

from shared.kafka.batches import make_room, read_so
from shared.kafka.errors import KafkaUnavailable, OutOfRange, guarded

_STUCK_AFTER = 45.0
_REBALANCE = 60.0
_PIECE = 500
_MIB = 1 << 20
_HELD = 24 * _MIB

read_so()
# An answer of some megabytes, in pieces of so many bytes: by the client's own 64 KiB the socket is stopped all the time.
conn.READER_LIMIT = 1 << 20


class Record(Protocol):
    """A record, whose topic and partition are known. `timestamp` (ms) is the broker's if `timestamp_type` is 1."""

    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def timestamp_type(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...  # noqa: D102


class _Listener(ConsumerRebalanceListener):
    """`between`: what was assigned is taken away, and what comes is not known yet. The client still names the former."""

    def __init__(self, revoked: Callable[[Collection[Partition]], None]) -> None:
        self._revoked = revoked
        self.between = False

    async def on_partitions_revoked(self, revoked: Collection[Partition]) -> None:  # type: ignore[bad-override]
        self.between = True
        self._revoked(revoked)

    async def on_partitions_assigned(self, _: Collection[Partition]) -> None:  # type: ignore[bad-override]
        """aiokafka calls this after records of the partition may have been delivered (issue 738): nobody is told."""
        self.between = False


class Reader:
    """A consumer of committed records that keeps no position of its own: its caller seeks each partition that it gets.

    With a group, partitions come and go (`assignment()`); without, all partitions of the topics are read.
    """

    def __init__(self, client: AIOKafkaConsumer, listener: _Listener) -> None:
        self._client = client
        self._listener = listener
        self._moved = _now()

    @classmethod
    async def open(
        cls,
        bootstrap: str,
        topics: Sequence[str],
        *,
        group: str | None = None,
        partitions: int = 1,
        revoked: Callable[[Collection[Partition]], None] = lambda _: None,
    ) -> Self:
        """Connects; `KafkaUnavailable` when a topic does not exist (yet). `partitions`: how many it may be given."""
        client = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            # The client keeps so much of each partition before it is asked for it.
            max_partition_fetch_bytes=max(_MIB, min(4 * _MIB, _HELD // partitions)),
            fetch_max_bytes=_HELD,
            fetch_max_wait_ms=250,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            max_poll_interval_ms=120_000,
            request_timeout_ms=30_000,
            retry_backoff_ms=100,
            # A topic that vanished and was made anew is noticed by no error in a group, only by looking.
            metadata_max_age_ms=10_000,
        )
        self = cls(client, _Listener(revoked))
        try:
            async with guarded("consumer"):
                await client.start()
                present = await client.topics()
                if missing := set(topics) - present:
                    raise KafkaUnavailable(f"no topic {', '.join(sorted(missing))} yet")
                if group:
                    client.subscribe(topics, listener=self._listener)
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
        """The partitions that are this reader's now: none while its group is formed anew."""
        return frozenset() if self._listener.between else frozenset(self._client.assignment())

    def seek(self, partition: Partition, offset: int) -> None:
        """Reads on from `offset`. A partition that is no longer assigned is left alone."""
        with suppress(Exception):
            self._client.seek(partition, offset)

    def pause(self, partition: Partition) -> None:
        """Reads no further in the partition as long as this reader has it."""
        with suppress(Exception):
            self._client.pause(partition)

    def resume(self, partition: Partition) -> None:
        """Reads on in a partition that was paused."""
        with suppress(Exception):
            self._client.resume(partition)

    def end(self, partition: Partition) -> int:
        """The offset after the last committed record, as of the last fetch; 0 before any."""
        with suppress(Exception):
            return int(self._client.last_stable_offset(partition) or 0)
        return 0

    async def bounds(self, partitions: Collection[Partition]) -> dict[Partition, tuple[int, int]]:
        """By partition: the first offset that is left, and the one after the last committed record."""
        async with guarded("offsets"):
            first = await self._client.beginning_offsets(list(partitions))
            last = await self._client.end_offsets(list(partitions))
        return {partition: (first[partition], last[partition]) for partition in partitions}

    async def position(self, partition: Partition) -> int:
        """The offset that will be read next; it moves over holes of compaction and transactions."""
        async with guarded("position"):
            return int(await self._client.position(partition))

    async def fetch(self, *, timeout_ms: int, max_records: int = 5000) -> dict[Partition, list[Record]]:
        """What there is, by partition, within `timeout_ms`. Whoever is cancelled in it reads no further with this reader.

        Raises `OutOfRange` naming the partitions whose position is outside of the log, `KafkaUnavailable` when nothing
        came for some seconds though there is more: the client is stuck.
        """
        make_room()
        found = await self._piece(timeout_ms, min(max_records, _PIECE))
        records = sum(map(len, found.values()))
        while found and records < max_records:
            # Piece by piece: unpacking takes as long as what is done with it, and others wait meanwhile.
            await asyncio.sleep(0)
            more: dict[Partition, list[Record]] = {}
            with suppress(OutOfRange, KafkaUnavailable):  # which come again when there is nothing else
                more = await self._piece(0, min(max_records - records, _PIECE))
            if not more:
                break
            for partition, piece in more.items():
                found.setdefault(partition, []).extend(piece)
                records += len(piece)
        if found:
            self._moved = _now()
        elif _now() - self._moved > _STUCK_AFTER:
            await self._check_stuck()
        return found

    async def _piece(self, timeout_ms: int, max_records: int) -> dict[Partition, list[Record]]:
        try:
            # A group that is being formed is waited for, whatever timeout_ms says.
            async with asyncio.timeout(timeout_ms / 1000 + _REBALANCE):
                found = await self._client.getmany(timeout_ms=timeout_ms, max_records=max_records)
        except TimeoutError:
            raise KafkaUnavailable("fetch: the group was not formed in time") from None
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise OutOfRange(_partitions_of(error)) from error
        except KafkaError as error:
            raise KafkaUnavailable(f"fetch: {error}") from error
        return cast(dict[Partition, list[Record]], found)

    async def _check_stuck(self) -> None:
        for partition, (_, end) in (await self.bounds(self.assignment() - self._client.paused())).items():
            if await self.position(partition) < end:
                raise KafkaUnavailable(f"no progress on {partition.topic}/{partition.partition} though there is more")
        self._moved = _now()

    async def read_up_to(self, ends: Mapping[Partition, int]) -> AsyncIterator[dict[Partition, list[Record]]]:
        """What there is up to these offsets, fetch by fetch. A partition that has become shorter meanwhile ends where it ends
        now; raises as `fetch` does."""
        left = dict(ends)
        while any([await self.position(partition) < end for partition, end in left.items()]):
            found = await self.fetch(timeout_ms=250)
            if not found:
                left = {
                    partition: min(left[partition], end) for partition, (_, end) in (await self.bounds(left)).items()
                }
            yield found

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


def _now() -> float:
    return asyncio.get_running_loop().time()


def _partitions_of(error: KafkaError) -> frozenset[Partition]:
    found = error.args[0] if error.args else ()
    return frozenset([found]) if isinstance(found, Partition) else frozenset(found)
