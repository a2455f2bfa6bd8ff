"""Exactly once from Kafka into PostgreSQL: what a batch of records changes and how far they were read is one transaction.

A group of consumers shares the partitions, but its membership is never what correctness rests on. It rests on the row of
`consumer_offsets`: compared and moved on in the transaction that stores the events, so that of two consumers that hold the
same records only one can store them. Kafka's own commits are a hint for its tools. A partition is read only after its
offset was taken from the database and sought (`_ready`), since aiokafka may deliver records of a partition before it
tells that it was assigned (issue 738).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import psycopg
import structlog
from prometheus_client import Counter, Gauge, Histogram
from psycopg_pool import PoolTimeout

from shared.consumer import store as consumed
from shared.consumer.batch import POISON, Subscription, store
from shared.consumer.intake import Batch, Intake, Kind, Tolerance, TooMuchPoison, reason
from shared.consumer.store import Held, Superseded
from shared.kafka import (
    KafkaUnavailable,
    OutOfRange,
    Partition,
    Reader,
    Record,
    cluster_id,
    partition_count,
    still_cluster,
)
from shared.postgres import Connection, Pool
from shared.telemetry import Check

__all__ = ["Consumer", "Kind", "Subscription"]

_BATCH = 5000
_TURN_MS = 250
_PATIENCE = 30.0
_MEASURE_EVERY = 1.0
_HINT_EVERY = 5.0
_LOOK_EVERY = 10.0
_GAP_ALARM = 60.0
_log = structlog.get_logger()

_lag = Gauge("keyledger_consumer_lag", "Records between the consumer's position and the end", ["topic", "partition"])
_stopped = Gauge("keyledger_consumer_stopped_partitions", "Partitions that are not read on until somebody looks")
_gaps = Gauge("keyledger_consumer_open_gaps", "Request logs with records missing, by partition")
_gap_age = Gauge("keyledger_consumer_oldest_gap_seconds", "For how long the oldest gap has been open")
_events = Counter("keyledger_consumer_events_total", "Events stored", ["topic"])
_duplicates = Counter("keyledger_consumer_duplicates_total", "Records dropped as already stored", ["topic"])
_dead = Counter("keyledger_consumer_dead_letters_total", "Records that could not be taken", ["topic"])
_clamped = Counter("keyledger_consumer_clamped_total", "Events whose time was out of bounds")
_lost = Counter("keyledger_consumer_lost_tails_total", "Times that a log ended before what was already taken of it")
_superseded = Counter("keyledger_consumer_superseded_total", "Batches that another consumer had stored")
_size = Histogram("keyledger_consumer_batch_events", "Records in a batch", buckets=(1, 10, 100, 1000, 2500, 5000))
_seconds = Histogram("keyledger_consumer_batch_seconds", "Time to store a batch")


class Consumer:
    """Stores the subscribed topics for as long as `run` runs; survives the loss of Kafka, database and partitions."""

    def __init__(
        self,
        bootstrap: str,
        pool: Pool,
        group: str,
        subscriptions: Sequence[Subscription],
        *,
        tolerance: Tolerance | None = None,
    ) -> None:
        self._bootstrap = bootstrap
        self._pool = pool
        self._group = group
        self._subscriptions = {subscription.topic.name: subscription for subscription in subscriptions}
        self._tolerance = tolerance or Tolerance()
        self._cluster = ""
        self._partitions: dict[str, int] = {}
        self._ready: dict[Partition, Held] = {}
        self._halted: dict[Partition, str] = {}
        self._holes: dict[Partition, int] = {}
        self._generation = 0
        self._problem = "starting"
        self._progress = self._measured = self._hinted = self._looked = time.monotonic()

    def checks(self) -> dict[str, Callable[[], Check]]:
        """For readiness: that it reads, and that no partition is stopped."""

        def check() -> Check:
            problem = self._problem or "; ".join(self._halted.values())
            return Check(not problem, problem or f"{len(self._ready)} partitions")

        return {"consumer": check}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, which lets a transaction under way finish. After too much poison it only waits, not ready."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                session = asyncio.ensure_future(self._session(stop))
                await asyncio.wait([session, stopped], return_when=asyncio.FIRST_COMPLETED)
                if not session.done():
                    await asyncio.wait([session], timeout=5.0)
                    session.cancel()
                with suppress(asyncio.CancelledError):
                    await self._ended(session, stop)
        finally:
            stopped.cancel()

    async def _ended(self, session: asyncio.Future[None], stop: asyncio.Event) -> None:
        try:
            await session
        except TooMuchPoison as error:
            _log.error("consumer stopped", error=str(error))
            self._problem = str(error)
            await stop.wait()
        except (KafkaUnavailable, psycopg.Error, PoolTimeout) as error:
            _log.warning("consumer interrupted", error=str(error))
            self._problem = str(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)

    async def _session(self, stop: asyncio.Event) -> None:
        """The life of one Kafka client. A consumer without a database does not join: it would only hold partitions."""
        async with self._pool.connection() as connection:
            await connection.execute("SELECT 1")
        self._cluster = await cluster_id(self._bootstrap)
        self._partitions = {topic: await partition_count(self._bootstrap, topic) for topic in self._subscriptions}
        reader = await Reader.open(
            self._bootstrap, list(self._subscriptions), group=self._group, revoked=lambda _: self._forget()
        )
        self._progress = time.monotonic()
        try:
            while not stop.is_set():
                await self._turn(reader)
        finally:
            self._forget()
            await reader.close()

    def _forget(self) -> None:
        self._generation += 1
        self._ready.clear()
        self._halted.clear()
        _lag.clear()

    async def _turn(self, reader: Reader) -> None:
        try:
            await self._position(reader)
            found = await reader.fetch(timeout_ms=_TURN_MS, max_records=_BATCH)
            if batch := self._contiguous(reader, found):
                await self._take(reader, batch)
            await self._observe(reader)
            self._problem, self._progress = "", time.monotonic()
        except OutOfRange as error:
            for partition in error.partitions:
                self._ready.pop(partition, None)
        except Superseded as error:
            _superseded.inc()
            _log.info("superseded", what=str(error))
            self._ready.clear()
        except (psycopg.Error, PoolTimeout) as error:
            # Whether a commit that broke was carried out is told by the offsets, which are read anew.
            self._ready.clear()
            self._problem = str(error)
            if time.monotonic() - self._progress > _PATIENCE:
                raise
            _log.warning("the database did not take a batch", error=str(error))
            await asyncio.sleep(0.5)

    async def _position(self, reader: Reader) -> None:
        missing = reader.assignment() - self._ready.keys() - self._halted.keys()
        if not missing:
            return
        generation = self._generation
        starts: dict[Partition, tuple[Held, str]] = {}
        await self._still_the_same()
        # What is held first: where logs end may have moved on meanwhile, but not back.
        async with self._pool.connection() as connection:
            held = await consumed.held_offsets(connection, missing)
        bounds = await reader.bounds(missing)
        async with self._pool.connection() as connection:
            for partition in sorted(missing):
                starts[partition] = await self._start(connection, partition, held.get(partition), *bounds[partition])
        if generation != self._generation:
            return
        for partition, (at, problem) in starts.items():
            reader.seek(partition, at.next_offset)
            if problem:
                self._halt(reader, partition, problem)
            else:
                self._ready[partition] = at

    async def _still_the_same(self) -> None:
        """Another cluster at the same address may give no partitions, or take offsets for its own: all begins anew."""
        await still_cluster(self._bootstrap, self._cluster)

    async def _start(
        self, connection: Connection, partition: Partition, held: Held | None, first: int, end: int
    ) -> tuple[Held, str]:
        """Where to read on, or why not to. Records that expired unread are never skipped.

        A log that ends before what was taken of it has lost its tail. What its producers then write there anew comes in
        at the end of the log where marks show what is missing; elsewhere everything is read again and deduplicated.
        """
        if held is None:
            at = Held(self._cluster, first, 0)
            await consumed.start(connection, partition, at)
            return at, ""
        if held.cluster == self._cluster and first <= held.next_offset <= end:
            return held, ""
        if held.cluster == self._cluster and held.next_offset < first:
            return held, f"{_name(partition)}: records from {held.next_offset} to {first} are gone from Kafka, unread"
        if held.cluster == self._cluster:
            _lost.inc()
            _log.error("a log lost its tail", partition=_name(partition), end=end, held=held.next_offset)
            first = end if self._subscriptions[partition.topic].kind is Kind.MARKS else first
        at = held.moved(self._cluster, first)
        await consumed.advance(connection, {partition: held}, {partition: at})
        await consumed.tell_again(connection, partition.partition)
        return at, ""

    def _halt(self, reader: Reader, partition: Partition, problem: str) -> None:
        _log.error("partition stopped", partition=_name(partition), problem=problem)
        self._ready.pop(partition, None)
        self._halted[partition] = problem
        reader.pause(partition)

    def _contiguous(self, reader: Reader, found: Batch) -> Batch:
        """The records of positioned partitions from the held offset on; where others were expected it is sought again."""
        batch: dict[Partition, list[Record]] = {}
        for partition, records in found.items():
            held = self._ready.get(partition)
            if held is None:
                continue
            if records[0].offset < held.next_offset:
                records = [record for record in records if record.offset >= held.next_offset]  # noqa: PLW2901
            elif records[0].offset > held.next_offset and self._subscriptions[partition.topic].kind is Kind.MARKS:
                self._hole(reader, partition, held.next_offset, records[0].offset)
                continue
            if records:
                batch[partition] = records
        return batch

    def _hole(self, reader: Reader, partition: Partition, held: int, found: int) -> None:
        if self._holes.get(partition) == held:
            self._halt(reader, partition, f"{_name(partition)}: offset {held} is not there, the next is {found}")
        else:
            self._holes[partition] = held
            del self._ready[partition]

    async def _take(self, reader: Reader, batch: Batch) -> None:
        generation, held = self._generation, {partition: self._ready[partition] for partition in batch}
        with _seconds.time():
            try:
                taken, tolerance = await self._store(batch, held, careful=False)
            except POISON as error:
                _log.warning("an event can't be stored", error=reason(error))
                taken, tolerance = await self._store(batch, held, careful=True)
        self._tolerance = tolerance
        _size.observe(sum(map(len, batch.values())))
        for topic, part in taken.items():
            _events.labels(topic).inc(len(part.events))
            _duplicates.labels(topic).inc(part.duplicates)
            _dead.labels(topic).inc(len(part.poison))
            _clamped.inc(part.clamped)
            if generation == self._generation:
                self._ready |= {p: held[p].moved(self._cluster, at) for p, at in part.next_offsets.items()}
                for partition, problem in part.stopped.items():
                    await self._missing(reader, partition, problem)

    async def _missing(self, reader: Reader, partition: Partition, problem: str) -> None:
        """A stream's events don't follow on what is held: the partition is read again from its start, once.

        Kafka may have lost its tail, and what was sent again lies before our offset. If it is not there either, the
        partition stops.
        """
        held = self._ready[partition]
        if self._holes.get(partition) == held.next_offset:
            reader.seek(partition, held.next_offset)
            self._halt(reader, partition, problem)
            return
        _log.error("reading a partition again", partition=_name(partition), problem=problem)
        first, _ = (await reader.bounds([partition]))[partition]
        async with self._pool.connection() as connection:
            await consumed.advance(connection, {partition: held}, {partition: held.moved(self._cluster, first)})
        self._holes[partition] = held.next_offset
        del self._ready[partition]

    async def _store(
        self, batch: Batch, held: dict[Partition, Held], *, careful: bool
    ) -> tuple[dict[str, Intake], Tolerance]:
        tolerance = replace(self._tolerance)
        async with self._pool.connection() as connection, connection.transaction():
            taken: dict[str, Intake] = {}
            for topic, subscription in self._subscriptions.items():
                if part := {partition: records for partition, records in batch.items() if partition.topic == topic}:
                    taken[topic] = await store(connection, subscription, part, self._partitions[topic], careful=careful)
            poison = [parked for part in taken.values() for parked in part.poison]
            tolerance.allow(batch, [record for record, _ in poison])
            await consumed.park(connection, self._cluster, poison)
            offsets = {partition: at for part in taken.values() for partition, at in part.next_offsets.items()}
            await consumed.advance(connection, held, {p: held[p].moved(self._cluster, at) for p, at in offsets.items()})
        return taken, tolerance

    async def _observe(self, reader: Reader) -> None:
        now = time.monotonic()
        if now - self._measured > _MEASURE_EVERY:
            self._measured = now
            _stopped.set(len(self._halted))
            for partition in [*self._ready, *self._halted]:
                with suppress(KafkaUnavailable):  # no longer assigned
                    _lag.labels(*partition).set(max(0, reader.end(partition) - await reader.position(partition)))
        if self._ready and now - self._hinted > _HINT_EVERY:
            self._hinted = now
            await reader.commit({partition: held.next_offset for partition, held in self._ready.items()})
        if now - self._looked > _LOOK_EVERY:
            self._looked = now
            await self._still_the_same()
            async with self._pool.connection() as connection:
                count, age = await consumed.open_gaps(connection)
            _gaps.set(count)
            _gap_age.set(age)
            if age > _GAP_ALARM:
                _log.error("records of request logs are missing", logs=count, oldest_seconds=round(age))


def _name(partition: Partition) -> str:
    return f"{partition.topic}/{partition.partition}"
