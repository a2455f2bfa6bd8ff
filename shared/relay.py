"""The relay: publishes a service's event log to Kafka, in order, one transaction a batch, from a stored checkpoint.

One relay a service is the leader: it holds a session advisory lock on its only connection, which the server ends when
it was not used for three seconds. A relay that was stopped and wakes up finds its connection gone, and whatever its
producer still holds is fenced by the broker, because its successor has opened the same transactional id.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

import structlog
from prometheus_client import Counter as Metric
from prometheus_client import Gauge
from psycopg.types.json import Jsonb

from shared.eventstore import CHANNEL, StoredEvent, read_log
from shared.kafka import KafkaUnavailable, Message, Partition, Producer, Reader, cluster_id, ensure_topics
from shared.postgres import AWAY, Connection, connect
from shared.publication import Messages, Publication, position_of
from shared.settings import Base
from shared.telemetry import Check

_LOCK = 7_316_002
_BATCH = 500
_BEAT = 1.0
_log = structlog.get_logger()

_position = Gauge("keyledger_relay_position", "Position of the log up to which everything is in Kafka")
_head = Gauge("keyledger_relay_head", "Position of the log's last event")
_leader = Gauge("keyledger_relay_leader", "1 while this relay is the one that publishes")
_published = Metric("keyledger_relay_published_total", "Events published")


class Relay:
    """Publishes for as long as `run` runs; loses and regains leadership, database and Kafka without help."""

    def __init__(self, settings: Base, dsn: str, publication: Publication) -> None:
        self._settings = settings
        self._dsn = dsn
        self._what = publication
        self._check = Check(False, "starting")
        self._make = Messages(publication, settings.partitions, epoch=0)
        self._position = 0
        self._streams: Counter[int] = Counter()
        self._offsets: dict[Partition, int] = {}

    def checks(self) -> dict[str, Callable[[], Check]]:
        """For readiness: that this relay leads, or stands by for the one that does."""
        return {"relay": lambda: self._check}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; every failure is logged, shown in readiness, and tried again from the checkpoint."""
        while not stop.is_set():
            try:
                await self._term(stop)
            except (KafkaUnavailable, *AWAY) as error:
                _log.warning("relay interrupted", error=str(error))
                self._check = Check(False, str(error))
            finally:
                _leader.set(0)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)

    async def _term(self, stop: asyncio.Event) -> None:
        connection = await connect(self._dsn, idle_session_timeout="3s")
        async with connection:
            if not await self._elected(connection, stop):
                return
            async with _used_each_second(connection):
                await ensure_topics(self._settings, self._what.topics)
                producer = await Producer.open(self._settings.kafka, self._what.source)
            try:
                async with _used_each_second(connection):
                    sound = await self._reconcile(connection, producer)
                if sound:
                    await self._publish(connection, producer, stop)
            finally:
                await producer.abandon()

    async def _elected(self, connection: Connection, stop: asyncio.Event) -> bool:
        while not stop.is_set():
            row = await (await connection.execute("SELECT pg_try_advisory_lock(%s) AS got", [_LOCK])).fetchone()
            if row and row["got"]:
                _leader.set(1)
                return True
            self._check = Check(True, "standing by")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
        return False

    async def _reconcile(self, connection: Connection, producer: Producer) -> bool:
        """Compares the topics with the checkpoint: sends again what Kafka lost; False when Kafka holds more than the log."""
        head = await self._read_head(connection)
        mark = await (await connection.execute("SELECT position, cluster, offsets FROM relay")).fetchone()
        assert mark is not None
        cluster = await cluster_id(self._settings.kafka)
        anew = mark["cluster"] not in (None, cluster)
        self._position = mark["position"]
        self._offsets = {} if anew else {_parse(name): offset for name, offset in mark["offsets"].items()}
        seen, lost = await self._survey(anew)
        if (highest := max(seen.values(), default=0)) > head:
            why = f"Kafka holds position {highest}, the log ends at {head}"
            _log.error("repair needed", reason=why)
            self._check = Check(False, f"repair needed: {why}")
            await connection.execute("UPDATE log_head SET repair_needed = %s", [why])
            return False
        await connection.execute("UPDATE relay SET cluster = %s", [cluster])
        self._streams = Counter(map(self._make.number, await self._known(connection)))
        if lost:
            _log.warning("publishing again what Kafka has lost", partitions=[str(partition) for partition in lost])
            await self._republish(connection, producer, lost, seen)
        return True

    async def _read_head(self, connection: Connection) -> int:
        head = await (await connection.execute("SELECT epoch, position FROM log_head")).fetchone()
        assert head is not None
        self._make = Messages(self._what, self._settings.partitions, head["epoch"])
        _head.set(head["position"])
        return int(head["position"])

    async def _survey(self, anew: bool) -> tuple[dict[Partition, int], set[Partition]]:
        """By partition the highest position read after the checkpoint, and the partitions that end before it."""
        reader = await Reader.open(self._settings.kafka, [topic.name for topic in self._what.topics])
        try:
            bounds = await reader.bounds(reader.assignment())
            lost = {p for p, (_, end) in bounds.items() if end < self._offsets.get(p, 0)}
            lost |= set(bounds) if anew else set()
            for partition, (begin, _) in bounds.items():
                reader.seek(partition, begin if partition in lost else max(begin, self._offsets.get(partition, 0)))
            seen = dict.fromkeys(bounds, 0)
            ends = {partition: end for partition, (_, end) in bounds.items()}
            while any([await reader.position(partition) < end for partition, end in ends.items()]):
                for partition, records in (await reader.fetch(timeout_ms=200)).items():
                    positions = [position_of(record.value) for record in records if record.value is not None]
                    seen[partition] = max([seen[partition], *positions])
            return seen, lost
        finally:
            await reader.close()

    async def _republish(
        self, connection: Connection, producer: Producer, lost: set[Partition], seen: dict[Partition, int]
    ) -> None:
        topic = self._what.topic.name
        after = min(seen[partition] for partition in lost)
        while after < self._position:
            events = [e for e in await read_log(connection, after, _BATCH) if e.position <= self._position]
            after = events[-1].position
            again = [(self._make.event(event), event.position) for event in events]
            messages = [m for m, position in again if m.partition in lost and position > seen[m.partition]]
            await self._transact(connection, producer, messages, self._position)
        if self._what.states_topic is None:
            return
        gone = {p.partition for p in lost if p.topic != topic}
        streams = [stream for stream in await self._known(connection) if self._make.number(stream) in gone]
        for at in range(0, len(streams), _BATCH):
            messages = await self._states(connection, streams[at : at + _BATCH])
            await self._transact(connection, producer, messages, self._position)
        await self._transact(connection, producer, self._beats(gone, self._position), self._position)

    async def _publish(self, connection: Connection, producer: Producer, stop: asyncio.Event) -> None:
        await connection.execute(f"LISTEN {CHANNEL}")
        clock = asyncio.get_running_loop().time
        beat_due = clock()
        while not stop.is_set():
            events = await read_log(connection, self._position, _BATCH)
            if events:
                await self._transact(connection, producer, await self._batch(connection, events), events[-1].position)
                _published.inc(len(events))
            if clock() >= beat_due:
                beat_due = clock() + _BEAT
                everywhere = self._beats(range(self._settings.partitions), self._position)
                await self._transact(connection, producer, everywhere, self._position)
                await self._read_head(connection)
            self._check = Check(True, f"leading, position {self._position}")
            if not events:
                async for _ in connection.notifies(timeout=max(0.0, beat_due - clock()), stop_after=1):
                    pass

    async def _batch(self, connection: Connection, events: Sequence[StoredEvent]) -> list[Message]:
        """The events, the states after them, and a heartbeat in each partition that a state goes to."""
        self._streams.update(self._make.number(event.stream) for event in events if event.version == 1)
        messages = [self._make.event(event) for event in events]
        if self._what.states_of is not None:
            streams = list(dict.fromkeys(event.stream for event in events))
            messages += await self._states(connection, streams)
            messages += self._beats({self._make.number(stream) for stream in streams}, events[-1].position)
        return messages

    async def _transact(
        self, connection: Connection, producer: Producer, messages: Sequence[Message], position: int
    ) -> None:
        """One Kafka transaction, then the checkpoint. A crash between the two sends it again; readers drop that by version."""
        if not messages:
            return
        offsets = await producer.transaction(messages)
        for partition, offset in offsets.items():
            if offset <= self._offsets.get(partition, 0):
                raise KafkaUnavailable(f"{partition.topic}/{partition.partition} is shorter than it was")
        self._offsets |= offsets
        saved = await connection.execute(
            "UPDATE relay SET position = %s, offsets = %s WHERE position = %s",
            [position, Jsonb({f"{p.topic}/{p.partition}": at for p, at in self._offsets.items()}), self._position],
        )
        if saved.rowcount != 1:
            raise KafkaUnavailable("the checkpoint was moved by another relay")
        self._position = position
        _position.set(position)

    async def _known(self, connection: Connection) -> list[str]:
        query = "SELECT stream FROM events WHERE version = 1 AND position <= %s"
        return [row["stream"] for row in await (await connection.execute(query, [self._position])).fetchall()]

    async def _states(self, connection: Connection, streams: Sequence[str]) -> list[Message]:
        states = await self._what.states_of(connection, streams) if self._what.states_of else []
        return [self._make.state(state) for state in states]

    def _beats(self, numbers: Iterable[int], position: int) -> list[Message]:
        if self._what.states_topic is None:
            return []
        return [self._make.beat(number, position, self._streams[number]) for number in numbers]


def _parse(name: str) -> Partition:
    topic, number = name.rsplit("/", 1)
    return Partition(topic, int(number))


@asynccontextmanager
async def _used_each_second(connection: Connection) -> AsyncIterator[None]:
    """Uses the connection each second while something else takes long: the server ends one that is idle for three."""

    async def use() -> None:
        while True:
            await asyncio.sleep(1.0)
            await connection.execute("SELECT 1")

    task = asyncio.create_task(use())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, *AWAY):
            await task
