"""The relay: publishes a service's event log to Kafka, in order, one transaction a batch, from a stored checkpoint.

One relay a service leads; one that was stopped and wakes up can write nothing any more (`shared.leader`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import structlog
from prometheus_client import Counter as Metric
from prometheus_client import Gauge

from shared.eventstore import CHANNEL, StoredEvent, read_log
from shared.kafka import Message, Producer, cluster_id
from shared.leader import Leader, used_each_second
from shared.postgres import Connection
from shared.relay.checkpoint import Checkpoint, Survey, contradiction, survey
from shared.relay.publication import Messages, Publication
from shared.settings import Base
from shared.telemetry import Check

_LOCK = 7_316_002
_BATCH = 500
_BEAT = 1.0
_LOOK = 10.0
_log = structlog.get_logger()

_position = Gauge("keyledger_relay_position", "Position of the log up to which everything is in Kafka")
_head = Gauge("keyledger_relay_head", "Position of the log's last event")
_published = Metric("keyledger_relay_published_total", "Events published")


class Relay:
    """Publishes for as long as `run` runs; loses and regains leadership, database and Kafka without help."""

    def __init__(self, settings: Base, dsn: str, publication: Publication) -> None:
        self._leader = Leader(settings, dsn, publication.source, _LOCK, publication.topics)
        self._settings = settings
        self._what = publication
        self._make = Messages(publication, settings.partitions, epoch=0)
        self._checkpoint = Checkpoint(0, "", {})
        self._streams: Counter[int] = Counter()

    def checks(self) -> dict[str, Callable[[], Check]]:
        """For readiness: that this relay leads, or stands by for the one that does."""
        return {"relay": lambda: self._leader.check}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; every failure is logged, shown in readiness, and tried again from the checkpoint."""
        await self._leader.run(self._term, stop)

    async def _term(self, connection: Connection, producer: Producer, stop: asyncio.Event) -> None:
        async with used_each_second(connection):
            sound = await self._reconcile(connection, producer)
        if sound:
            await self._publish(connection, producer, stop)

    async def _reconcile(self, connection: Connection, producer: Producer) -> bool:
        """Compares the topics with the checkpoint: sends again what Kafka lost; False when Kafka holds more than the log."""
        head = await self._read_head(connection)
        self._checkpoint = await Checkpoint.load(connection, await cluster_id(self._settings.kafka))
        found = await survey(self._settings.kafka, self._what.topics, self._checkpoint)
        if why := await contradiction(connection, self._what.topic, found, head):
            _log.error("repair needed", reason=why)
            self._leader.check = Check(False, f"repair needed: {why}")
            await connection.execute("UPDATE log_head SET repair_needed = %s", [why])
            return False
        self._streams = Counter(map(self._make.number, await self._known(connection)))
        if found.lost:
            await self._fill_again(connection, producer, found)
        return True

    async def _read_head(self, connection: Connection) -> int:
        head = await (await connection.execute("SELECT epoch, position FROM log_head")).fetchone()
        assert head is not None
        self._make = Messages(self._what, self._settings.partitions, head["epoch"])
        _head.set(head["position"])
        return int(head["position"])

    async def _fill_again(self, connection: Connection, producer: Producer, found: Survey) -> None:
        """Publishes up to the checkpoint what partitions that are not whole don't hold; they count as whole only then."""
        position = self._checkpoint.position
        if position:
            _log.warning("publishing again what Kafka lacks", partitions=sorted(map(str, found.lost)))
        self._checkpoint = await self._checkpoint.without(connection, found.lost)
        ends = dict(found.ends)
        async for messages in self._lacking(connection, found):
            if messages:
                ends |= await producer.transaction(messages, ends)
        self._checkpoint = await self._checkpoint.moved(connection, position, ends)

    async def _lacking(self, connection: Connection, found: Survey) -> AsyncIterator[list[Message]]:
        """Batches for `_fill_again`; heartbeats come last, since they say that a partition is complete."""
        position = self._checkpoint.position
        after = min(found.position(partition) for partition in found.lost)
        while after < position:
            events = await read_log(connection, after, min(_BATCH, position - after))
            after = events[-1].position
            messages = [(event.position, self._make.event(event)) for event in events]
            yield [m for at, m in messages if m.partition in found.lost and at > found.position(m.partition)]
        numbers = {p.partition for p in found.lost if p.topic != self._what.topic.name}
        streams = [stream for stream in await self._known(connection) if self._make.number(stream) in numbers]
        for at in range(0, len(streams), _BATCH):
            yield await self._states(connection, streams[at : at + _BATCH])
        yield self._beats(numbers, position)

    async def _publish(self, connection: Connection, producer: Producer, stop: asyncio.Event) -> None:
        await connection.execute(f"LISTEN {CHANNEL}")
        clock = asyncio.get_running_loop().time
        beat_due = clock()
        look_due = clock() + _LOOK
        while not stop.is_set():
            if self._what.states_topic is None and clock() >= look_due:
                # Without heartbeats nothing else would tell that Kafka lost what readers wait for.
                look_due = clock() + _LOOK
                async with used_each_second(connection):
                    if not await self._reconcile(connection, producer):
                        return
            events = await read_log(connection, self._checkpoint.position, _BATCH)
            if events:
                await self._transact(connection, producer, await self._batch(connection, events), events[-1].position)
                _published.inc(len(events))
            if clock() >= beat_due:
                beat_due = clock() + _BEAT
                everywhere = self._beats(range(self._settings.partitions), self._checkpoint.position)
                await self._transact(connection, producer, everywhere, self._checkpoint.position)
                await self._read_head(connection)
            self._leader.check = Check(True, f"leading, position {self._checkpoint.position}")
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
        offsets = await producer.transaction(messages, self._checkpoint.offsets)
        self._checkpoint = await self._checkpoint.moved(connection, position, {**self._checkpoint.offsets, **offsets})
        _position.set(position)

    async def _known(self, connection: Connection) -> list[str]:
        query = "SELECT stream FROM events WHERE version = 1 AND position <= %s"
        return [
            row["stream"] for row in await (await connection.execute(query, [self._checkpoint.position])).fetchall()
        ]

    async def _states(self, connection: Connection, streams: Sequence[str]) -> list[Message]:
        states = await self._what.states_of(connection, streams) if self._what.states_of else []
        return [self._make.state(state) for state in states]

    def _beats(self, numbers: Iterable[int], position: int) -> list[Message]:
        if self._what.states_topic is None:
            return []
        generation = self._checkpoint.generation
        return [self._make.beat(number, position, self._streams[number], generation) for number in numbers]
