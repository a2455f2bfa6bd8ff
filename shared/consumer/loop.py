"""Exactly once from Kafka into PostgreSQL: what records change and how far they were read is one transaction.

A group of consumers shares the partitions, but its membership is never what correctness rests on. It rests on the row of
`consumer_offsets`: compared and moved on in the transaction that stores the events, so that of two consumers that hold the
same records only one can store them. Kafka's own commits are a hint for its tools.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import psycopg
import structlog
from prometheus_client import Counter, Histogram
from psycopg_pool import PoolTimeout

from shared.consumer import dead_letters, store
from shared.consumer.batch import Batch
from shared.consumer.intake import Intake, Kind
from shared.consumer.poison import Tolerance, TooMuchPoison
from shared.consumer.positions import Positions
from shared.consumer.records import Fetched, blamed, portions, reason
from shared.consumer.store import Offset, Superseded, TopicId
from shared.consumer.transaction import POISON, Subscription, Together, take
from shared.consumer.watch import forget, watch
from shared.kafka import KafkaUnavailable, OutOfRange, Partition, Reader, identify
from shared.postgres import Pool
from shared.telemetry import Check

__all__ = ["Consumer", "Kind", "Subscription", "Together"]

_BATCH = 10_000
"""Records of one transaction at most. Of how many bytes, `shared.kafka` bounds."""
_CAREFUL = (500, 1 << 20)
"""Records and bytes where poison has to be told apart: of others there is then less to do again, and each step is short."""
_TURN_MS = 250
_PATIENCE = 30.0
_STALE = 15.0
_AGAIN = (1.0, 30.0)
_AFTER_POISON = (5.0, 300.0)
_log = structlog.get_logger()

_events = Counter("keyledger_consumer_events_total", "Events stored", ["topic"])
_duplicates = Counter("keyledger_consumer_duplicates_total", "Records dropped as already stored", ["topic"])
_dead = Counter("keyledger_consumer_dead_letters_total", "Records that could not be taken", ["topic"])
_clamped = Counter("keyledger_consumer_clamped_total", "Events whose time was out of bounds")
_superseded = Counter("keyledger_consumer_superseded_total", "Batches that another consumer had stored")
_size = Histogram(
    "keyledger_consumer_batch_events", "Records in a batch", buckets=(1, 10, 100, 1000, 2500, 5000, 10_000)
)
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
        self._topics: dict[str, TopicId] = {}
        self._positions = Positions(pool, {name: each.kind for name, each in self._subscriptions.items()})
        self._problem = "starting"
        self._poisoned = False
        self._wait = 0.0
        self._progress = time.monotonic()
        self._storing: asyncio.Future[None] | None = None
        self._doubted: dict[Partition, int] = {}

    def checks(self) -> dict[str, Callable[[], Check]]:
        """For readiness: that it goes on, and that no partition is stopped."""

        def check() -> Check:
            halts = [halt.problem for halt in self._positions.halted.values()]
            still = time.monotonic() - self._progress
            stale = f"nothing has gone on for {still:.0f} s" if still > _STALE else ""
            problem = self._problem or "; ".join(halts) or stale
            return Check(not problem, problem or f"{len(self._positions.ready)} partitions")

        return {"consumer": check}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, which lets a transaction under way finish. Whatever ends a session, another follows after a while."""
        stopped = asyncio.ensure_future(stop.wait())
        session: asyncio.Future[None] | None = None
        try:
            while not stop.is_set():
                session = asyncio.ensure_future(self._session(stop))
                await asyncio.wait([session, stopped], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait([session], timeout=5.0)
                session.cancel()
                await asyncio.wait([session])
                if not session.cancelled() and (error := session.exception()):
                    await self._rest(error, stop)
        finally:
            stopped.cancel()
            if session:
                session.cancel()

    async def _rest(self, error: BaseException, stop: asyncio.Event) -> None:
        """Waits longer after each session in which nothing went on: what is wrong may take a new version to mend."""
        least, most = _AFTER_POISON if isinstance(error, TooMuchPoison) else _AGAIN
        self._poisoned = isinstance(error, TooMuchPoison)
        if isinstance(error, (TooMuchPoison, KafkaUnavailable, psycopg.Error, PoolTimeout)):
            self._problem = str(error)
            _log.warning("consumer interrupted", error=self._problem)
        else:
            self._problem = reason(error)
            _log.error("consumer failed", exc_info=error)
        self._wait = min(max(2 * self._wait, least), most)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), self._wait)

    async def _session(self, stop: asyncio.Event) -> None:
        """The life of one Kafka client. A consumer without a database does not join: it would only hold partitions."""
        async with self._pool.connection() as connection:
            await connection.execute("SELECT 1")
        cluster, self._topics = await self._found()
        if missing := self._subscriptions.keys() - self._topics.keys():
            raise KafkaUnavailable(f"no topic {', '.join(sorted(missing))} yet")
        async with self._pool.connection() as connection:
            await store.adopt(connection, cluster, self._topics.values())
        self._positions.begin(self._topics)
        reader = await Reader.open(
            self._bootstrap,
            list(self._subscriptions),
            group=self._group,
            partitions=max(topic.partitions for topic in self._topics.values()),
            revoked=lambda _: self._forget(),
        )
        self._progress = time.monotonic()
        self._doubted.clear()
        watching = asyncio.ensure_future(watch(reader, self._pool, self._positions, self._still_the_same))
        try:
            while not stop.is_set():
                if watching.done():
                    watching.result()
                await self._turn(reader)
            await self._finish()
        finally:
            await _ended(watching, self._storing)
            self._storing = None
            self._forget()
            await reader.close()

    async def _found(self) -> tuple[str, dict[str, TopicId]]:
        found = await identify(self._bootstrap, list(self._subscriptions))
        return found.id, {name: TopicId(name, *topic) for name, topic in found.topics.items()}

    async def _still_the_same(self) -> None:
        """Topics that were made anew, or are another cluster's, may show by no error: all begins anew."""
        _, topics = await self._found()
        if topics != self._topics:
            raise KafkaUnavailable("the topics are others now")

    def _forget(self) -> None:
        self._positions.forget()
        forget()

    async def _turn(self, reader: Reader) -> None:
        """Reads and prepares what comes while the transaction before is under way, and begins the next."""
        try:
            await self._positions.find(reader, self._finish, self._still_the_same)
            found = await reader.fetch(timeout_ms=_TURN_MS, max_records=_BATCH)
            fetched = self._positions.contiguous(reader, found)
            if any(records[0].offset < self._doubted.get(partition, 0) for partition, records in fetched.items()):
                await self._carefully(reader, fetched)
            elif fetched:
                await self._quickly(reader, fetched)
            else:
                await self._finish()
                self._went_on(stored=False)
        except OutOfRange as error:
            for partition in error.partitions:
                self._positions.ready.pop(partition, None)
            # It is told without waiting, again and again, of what just came and the client has not yet said to be ours.
            await asyncio.sleep(0)
        except Superseded as error:
            _superseded.inc()
            _log.info("superseded", what=str(error))
            self._positions.ready.clear()
        except (psycopg.Error, PoolTimeout) as error:
            # Whether a commit that broke was carried out is told by the offsets, which are read anew.
            self._positions.ready.clear()
            self._problem = str(error)
            if time.monotonic() - self._progress > _PATIENCE:
                raise
            _log.warning("the database did not take a batch", error=str(error))
            await asyncio.sleep(0.5)

    async def _quickly(self, reader: Reader, fetched: Fetched) -> None:
        batch = Batch.of(self._positions.ready, fetched)
        try:
            await batch.prepare(self._pool, self._subscriptions.values())
        except POISON as error:
            self._doubt(batch, error)
            return
        for partition, held in batch.held.items():
            held.at = batch.after[partition]
        await self._finish()
        if self._positions.holds(batch.held):
            self._storing = asyncio.ensure_future(self._store(reader, batch))

    async def _carefully(self, reader: Reader, fetched: Fetched) -> None:
        """By small transactions, one after the other, each of which asks the database for the marks."""
        await self._finish()
        for portion in portions(fetched, *_CAREFUL):
            ready = self._positions.ready
            batch = Batch.of(ready, {p: records for p, records in portion.items() if p in ready}, careful=True)
            for partition, held in batch.held.items():
                held.at = batch.after[partition]
                held.marks.clear()
            if batch.held:
                await self._store(reader, batch)

    def _doubt(self, batch: Batch, error: BaseException) -> None:
        """All begins anew, and the records of the batch are taken with care."""
        _log.warning("an event can't be stored", error=reason(error))
        self._doubted |= {partition: at.next for partition, at in batch.after.items()}
        self._positions.ready.clear()

    async def _finish(self) -> None:
        """Waits for the transaction under way, if there is one; what it raises comes up here."""
        storing, self._storing = self._storing, None
        if storing:
            await storing

    def _went_on(self, *, stored: bool) -> None:
        """After too much poison nothing is well before something was stored: an empty turn comes before the same again."""
        self._progress = time.monotonic()
        if stored or not self._poisoned:
            self._problem, self._poisoned, self._wait = "", False, 0.0

    async def _store(self, reader: Reader, batch: Batch) -> None:
        """One transaction, and what follows from it."""
        try:
            with _seconds.time():
                taken, tolerance = await self._transaction(batch)
        except POISON as error:
            if batch.careful:
                raise
            self._doubt(batch, error)
            return
        self._tolerance = tolerance
        _size.observe(batch.records)
        for topic, part in taken.items():
            _events.labels(topic).inc(part.taken)
            _duplicates.labels(topic).inc(part.duplicates)
            _dead.labels(topic).inc(len(part.poison))
            _clamped.inc(part.clamped)
        to = _moved(batch, taken)
        if self._positions.stored(batch.held, to):
            self._went_on(stored=True)
            for part in taken.values():
                for partition, problem in part.stopped.items():
                    if self._positions.ready.get(partition) is batch.held[partition]:
                        await self._positions.missing(reader, partition, to[partition], problem)

    async def _transaction(self, batch: Batch) -> tuple[dict[str, Intake], Tolerance]:
        tolerance = replace(self._tolerance)
        async with self._pool.connection() as connection, connection.transaction():
            taken: dict[str, Intake] = {}
            for name, subscription in self._subscriptions.items():
                topic = self._topics[name]
                if prepared := batch.prepared.get(name):
                    taken[name] = prepared.part
                    if prepared.part.taken:
                        await prepared.work.store(connection)
                    await store.store_marks(connection, prepared.marks, topic.partitions)
                if read := batch.read.get(name):
                    taken[name] = await take(connection, subscription, topic, read, careful=batch.careful)
            poison = [parked for part in taken.values() for parked in part.poison]
            tolerance.allow(*_sources(taken), batch.records)
            await dead_letters.park(connection, {name: self._topics[name].id for name in taken}, poison)
            await store.advance(connection, batch.before, _moved(batch, taken))
        return taken, tolerance


def _moved(batch: Batch, taken: dict[str, Intake]) -> dict[Partition, Offset]:
    stopped = {partition: at for part in taken.values() for partition, at in part.next_offsets.items()}
    return {p: batch.before[p].moved(stopped[p]) if p in stopped else after for p, after in batch.after.items()}


def _sources(taken: dict[str, Intake]) -> tuple[set[str], set[str]]:
    """Who is behind what was taken, and behind what is to be parked. Of so many records only some are looked at."""
    hit = {blamed(record) for part in taken.values() for _, record, _ in part.poison}
    bad = {id(record) for part in taken.values() for _, record, _ in part.poison}
    well = {blamed(record) for part in taken.values() for _, record in part.origins[::50] if id(record) not in bad}
    return well.union(*(part.owners for part in taken.values())), hit


async def _ended(*tasks: asyncio.Future[None] | None) -> None:
    """Ends what still runs, and hears no more of it."""
    running = [task for task in tasks if task]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
