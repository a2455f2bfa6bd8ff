"""Where a consumer reads each of its partitions, and which it reads no further, with the reason.

A partition is read only after its offset was taken from the database and sought, since aiokafka may deliver records of
a partition before it tells that it was assigned (issue 738). What is known of a partition is forgotten when it is taken
away; whatever was begun before that must not bring it back (`epoch`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
from prometheus_client import Counter

from shared.consumer import store
from shared.consumer.intake import Kind, LogMark
from shared.consumer.records import Fetched
from shared.consumer.store import Offset, TopicId
from shared.kafka import Partition, Reader, Record
from shared.postgres import Connection, Pool

_AGAIN = (60.0, 3600.0)
_MARKS = 10_000
_log = structlog.get_logger()
_lost = Counter("keyledger_consumer_lost_tails_total", "Times that a log ended before what was already taken of it")


@dataclass(eq=False, slots=True)
class Held:
    """A partition that is read on, as long as it is this one in `Positions.ready`, and no longer.

    Its records up to `at` are in transactions, those up to `stored` in the database. `marks` are those of its logs after
    `at`, as far as they were needed: nobody else changes them while the offset is this consumer's.
    """

    at: Offset
    stored: int
    marks: dict[str, LogMark] = field(default_factory=dict)


@dataclass(frozen=True)
class Halt:
    """Why a partition is read no further than to an offset, when that is tried again, and after which wait."""

    problem: str
    offset: int
    again: float
    wait: float


class Positions:
    """The partitions of one consumer: `ready` are read from there on, `halted` wait until they are tried again."""

    def __init__(self, pool: Pool, kinds: Mapping[str, Kind]) -> None:
        self._pool = pool
        self._kinds = kinds
        self._topics: Mapping[str, TopicId] = {}
        self._holes: dict[Partition, int] = {}
        self._waits: dict[Partition, Halt] = {}
        self.ready: dict[Partition, Held] = {}
        self.halted: dict[Partition, Halt] = {}
        self.epoch = 0

    def begin(self, topics: Mapping[str, TopicId]) -> None:
        """A new session, in which the topics are these."""
        self._topics = topics
        self.forget()

    def forget(self) -> None:
        """Nothing is this consumer's any more."""
        self.epoch += 1
        self.ready.clear()
        self.halted.clear()

    async def find(
        self, reader: Reader, finish: Callable[[], Awaitable[None]], still_the_same: Callable[[], Awaitable[None]]
    ) -> None:
        """Positions the partitions that came, or came back, and those whose halt is over.

        What the database says counts from when `finish` has ended the transactions of before.
        """
        self._try_again(reader)
        if any(len(held.marks) > _MARKS for held in self.ready.values()):
            await finish()
            for held in self.ready.values():
                held.marks.clear()
        if not reader.assignment() - self.ready.keys() - self.halted.keys():
            return
        await finish()
        missing = reader.assignment() - self.ready.keys() - self.halted.keys()
        epoch = self.epoch
        await still_the_same()
        # What is held first: where logs end may have moved on meanwhile, but not back.
        async with self._pool.connection() as connection:
            offsets = await store.load_offsets(connection, missing)
        bounds = await reader.bounds(missing)
        starts: dict[Partition, tuple[Offset, str]] = {}
        async with self._pool.connection() as connection:
            for partition in sorted(missing):
                starts[partition] = await self._start(connection, partition, offsets.get(partition), *bounds[partition])
        if epoch != self.epoch:
            return
        for partition, (at, problem) in starts.items():
            reader.seek(partition, at.next)
            if problem:
                self._halt(reader, partition, at.next, problem)
            else:
                self.ready[partition] = Held(at, at.next)

    def _try_again(self, reader: Reader) -> None:
        now = time.monotonic()
        for partition in [partition for partition, halt in self.halted.items() if halt.again <= now]:
            self._waits[partition] = self.halted.pop(partition)
            self._holes.pop(partition, None)
            reader.resume(partition)

    async def _start(
        self, connection: Connection, partition: Partition, held: Offset | None, first: int, end: int
    ) -> tuple[Offset, str]:
        """Where to read on, or why not to. Records that expired unread are never skipped.

        A log that ends before what was taken of it has lost its tail, and what is there now may be other records: it is
        read again from its start, and what is known is dropped. So is one that was made anew.
        """
        topic_id = self._topics[partition.topic].id
        if held is None:
            at = Offset(topic_id, first, 0)
            await store.start(connection, partition, at)
            return at, ""
        if held.topic_id == topic_id and first <= held.next <= end:
            return held, ""
        if held.topic_id == topic_id and held.next < first:
            return held, f"{name(partition)}: records from {held.next} to {first} are gone from Kafka, unread"
        if held.topic_id == topic_id:
            _lost.inc()
            _log.error("a log lost its tail", partition=name(partition), end=end, held=held.next)
        at = held.moved(first, topic_id)
        await store.advance(connection, {partition: held}, {partition: at})
        await store.tell_again(connection, partition.partition)
        return at, ""

    def _halt(self, reader: Reader, partition: Partition, at: int, problem: str) -> None:
        before = self._waits.get(partition)
        wait = min(2 * before.wait, _AGAIN[1]) if before else _AGAIN[0]
        _log.error("partition stopped", partition=name(partition), problem=problem, again_in_seconds=wait)
        self.ready.pop(partition, None)
        self.halted[partition] = Halt(problem, at, time.monotonic() + wait, wait)
        reader.pause(partition)

    def contiguous(self, reader: Reader, found: Fetched) -> Fetched:
        """The records of positioned partitions from their offset on; where others were expected it is sought again."""
        fetched: dict[Partition, list[Record]] = {}
        for partition, records in found.items():
            held = self.ready.get(partition)
            if held is None:
                continue
            at = held.at
            if records[0].offset < at.next:
                records = [record for record in records if record.offset >= at.next]  # noqa: PLW2901
            elif records[0].offset > at.next and self._kinds[partition.topic] is Kind.MARKS:
                self._hole(reader, partition, at.next, records[0].offset)
                continue
            if records:
                fetched[partition] = records
        return fetched

    def _hole(self, reader: Reader, partition: Partition, expected: int, found: int) -> None:
        if self._holes.get(partition) == expected:
            problem = f"{name(partition)}: offset {expected} is not there, the next is {found}"
            self._halt(reader, partition, expected, problem)
        else:
            self._holes[partition] = expected
            del self.ready[partition]

    def holds(self, batch: Mapping[Partition, Held]) -> bool:
        """Whether all of a batch's partitions are still those of when it was begun. Else it is for nothing: they begin anew."""
        if all(self.ready.get(partition) is held for partition, held in batch.items()):
            return True
        for partition, held in batch.items():
            if self.ready.get(partition) is held:
                del self.ready[partition]
        return False

    def stored(self, batch: Mapping[Partition, Held], to: Mapping[Partition, Offset]) -> bool:
        """Takes note of a transaction; False when none of its partitions are this consumer's any longer."""
        ours = {partition: held for partition, held in batch.items() if self.ready.get(partition) is held}
        for partition, held in ours.items():
            held.stored = to[partition].next
            if (halt := self._waits.get(partition)) and held.stored > halt.offset:
                del self._waits[partition]
        return bool(ours)

    async def missing(self, reader: Reader, partition: Partition, at: Offset, problem: str) -> None:
        """A stream's events don't follow on what is held: the partition is read again from its start, once.

        Kafka may have lost its tail, and what was sent again lies before our offset. If it is not there either, the
        partition stops.
        """
        if self._holes.get(partition) == at.next:
            reader.seek(partition, at.next)
            self._halt(reader, partition, at.next, problem)
            return
        _log.error("reading a partition again", partition=name(partition), problem=problem)
        self.ready.pop(partition, None)
        epoch = self.epoch
        first, _ = (await reader.bounds([partition]))[partition]
        async with self._pool.connection() as connection:
            await store.advance(connection, {partition: at}, {partition: at.moved(first)})
        if epoch == self.epoch:
            self._holes[partition] = at.next


def name(partition: Partition) -> str:
    """A partition as logs and messages have it."""
    return f"{partition.topic}/{partition.partition}"
