"""The relay: publishes a service's event log to Kafka, in order, one transaction a batch, from a stored checkpoint.

One relay a service leads; one that was stopped and wakes up can write nothing any more (`shared.leader`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace

import structlog
from prometheus_client import Counter as Metric
from prometheus_client import Gauge

from shared.eventstore import StoredEvent
from shared.kafka import Message, Producer
from shared.leader import Leader
from shared.postgres import Connection
from shared.relay.checkpoint import Checkpoint
from shared.relay.publication import Messages, Publication
from shared.relay.store import Known, Log
from shared.relay.survey import Survey, survey, watch
from shared.settings import Base
from shared.telemetry import Check

_LOCK = 7_316_002
_BATCH = 500
_BEAT = 1.0
_RETIRE_EVERY = 10.0
_log = structlog.get_logger()

_position = Gauge("keyledger_relay_position", "Position of the log up to which everything is in Kafka")
_head = Gauge("keyledger_relay_head", "Position of the log's last event")
_published = Metric("keyledger_relay_published_total", "Events published")
_retired = Metric("keyledger_relay_retired_total", "States deleted of streams that ended long ago")


class Relay:
    """Publishes for as long as `run` runs; loses and regains leadership, database and Kafka without help."""

    def __init__(self, settings: Base, dsn: str, publication: Publication) -> None:
        self._leader = Leader(settings, dsn, publication.source, _LOCK, publication.topics)
        self._settings = settings
        self._what = publication

    def checks(self) -> dict[str, Callable[[], Check]]:
        """For readiness: that this relay leads, or stands by for the one that does."""
        return {"relay": lambda: self._leader.check}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; every failure is logged, shown in readiness, and tried again from the checkpoint."""
        await self._leader.run(self._lead, stop)

    async def _lead(self, connection: Connection, producer: Producer, stop: asyncio.Event) -> None:
        await Term(self._settings, self._what, Log(connection, self._what), producer, self._tell).run(stop)

    def _tell(self, check: Check) -> None:
        self._leader.check = check


class Term:
    """What a relay does while it leads, with one producer and one connection. `tell` is told how it stands."""

    def __init__(
        self,
        settings: Base,
        publication: Publication,
        log: Log,
        producer: Producer,
        tell: Callable[[Check], None],
    ) -> None:
        self._settings = settings
        self._what = publication
        self._source = log
        self._producer = producer
        self._tell = tell
        self._make = Messages(publication, settings.partitions, epoch=0)
        self._checkpoint = Checkpoint()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, or an error; at once when Kafka holds more than the log does."""
        if not await self._reconcile():
            return
        watching = asyncio.ensure_future(watch(self._settings.kafka, lambda: self._checkpoint.written))
        try:
            await self._publish(stop, watching)
        finally:
            watching.cancel()

    async def _reconcile(self) -> bool:
        """Compares the topics with the checkpoint: sends again what Kafka lost; False when Kafka holds more than the log."""
        head = await self._read_head()
        held = await self._source.checkpoint()
        found = await survey(self._settings.kafka, [topic.name for topic in self._what.topics], held.written)
        if why := await self._contradiction(found, head):
            _log.error("repair needed", reason=why)
            await self._source.need_repair(why)
            self._tell(Check(False, f"repair needed: {why}"))
            return False
        following = replace(held, written=found.whole, streams=held.streams or await self._count(held))
        if found.lost:
            following = replace(following, generation=held.generation + 1)
        self._checkpoint = await self._source.move(held, following)
        if found.lost:
            await self._fill_again(found)
        return True

    async def _read_head(self) -> int:
        epoch, position = await self._source.head()
        self._make = Messages(self._what, self._settings.partitions, epoch)
        _head.set(position)
        return position

    async def _contradiction(self, found: Survey, head: int) -> str | None:
        """In words, what Kafka holds that the log does not: positions beyond its end, or another event at a position.

        Either means that the database was restored to an older state: its positions would be, or were, given out twice.
        """
        furthest = max((placed.position for placed in found.last.values()), default=0)
        if furthest > head:
            return f"Kafka holds position {furthest}, the log ends at {head}"
        events = [placed for partition, placed in found.last.items() if partition.topic == self._what.topic.name]
        own = await self._source.ids({placed.position for placed in events})
        other = [placed.position for placed in events if own.get(placed.position) != placed.id]
        return f"Kafka and the log hold different events at position {min(other)}" if other else None

    async def _count(self, held: Checkpoint) -> tuple[int, ...]:
        """How many streams lie in each partition: once in a log's life, afterwards the checkpoint has it."""
        counts, after = replace(held, streams=(0,) * self._settings.partitions), 0
        while page := await self._source.streams(after, held.position, _BATCH, self._what.final, held.retired):
            after = page[-1].position
            began = [self._make.number(known.stream) for known in page if not known.ended]
            counts = replace(counts, streams=counts.counted(began))
        return counts.counted()

    async def _fill_again(self, found: Survey) -> None:
        """Publishes up to the checkpoint what partitions that are not whole don't hold; they count as whole only then."""
        held = self._checkpoint
        if held.position:
            _log.warning("publishing again what Kafka lacks", partitions=sorted(map(str, found.lost)))
        ends = dict(found.ends)
        async for messages in self._lacking(found):
            if messages:
                ends |= await self._producer.transaction(messages, ends)
        self._checkpoint = await self._source.move(held, replace(held, written=held.written.moved(ends)))

    async def _lacking(self, found: Survey) -> AsyncIterator[list[Message]]:
        """Batches for `_fill_again`; heartbeats come last, since they say that a partition is complete."""
        held = self._checkpoint
        events = {partition for partition in found.lost if partition.topic == self._what.topic.name}
        after = min(map(found.position, events), default=held.position)
        while after < held.position:
            batch = await self._source.read(after, min(_BATCH, held.position - after))
            after = batch[-1].position
            messages = [(event.position, self._make.event(event)) for event in batch]
            yield [m for at, m in messages if m.partition in events and at > found.position(m.partition)]
        numbers = {partition.partition for partition in found.lost - events}
        after = 0
        while numbers and (page := await self._streams(after)):
            after = page[-1].position
            here = [known for known in page if self._make.number(known.stream) in numbers]
            yield [
                *await self._states([known.stream for known in here if not known.ended]),
                *[self._make.deletion(known.stream) for known in here if known.ended],
            ]
        yield self._beats(numbers, held)

    async def _streams(self, after: int) -> list[Known]:
        held = self._checkpoint
        return await self._source.streams(after, held.position, _BATCH, self._what.final, held.retired)

    async def _publish(self, stop: asyncio.Event, watching: asyncio.Future[None]) -> None:
        await self._source.listen()
        clock = asyncio.get_running_loop().time
        beat_due = retire_due = clock()
        while not stop.is_set():
            if watching.done():
                watching.result()
            events = await self._source.read(self._checkpoint.position, _BATCH)
            if events:
                await self._transact(*await self._batch(events))
                _published.inc(len(events))
            if clock() >= beat_due:
                beat_due = clock() + _BEAT
                everywhere = self._beats(range(self._settings.partitions), self._checkpoint)
                await self._transact(everywhere, self._checkpoint)
                await self._read_head()
            if clock() >= retire_due and not await self._retire():
                retire_due = clock() + _RETIRE_EVERY
            self._tell(Check(True, f"leading, position {self._checkpoint.position}"))
            if not events:
                await self._source.appended(max(0.0, beat_due - clock()))

    async def _batch(self, events: Sequence[StoredEvent]) -> tuple[list[Message], Checkpoint]:
        """The events, the states after them, and a heartbeat in each partition that a state goes to; what holds then."""
        began = [self._make.number(event.stream) for event in events if event.version == 1]
        streams = self._checkpoint.counted(began)
        following = replace(self._checkpoint, position=events[-1].position, streams=streams)
        messages = [self._make.event(event) for event in events]
        if self._what.states_of is not None:
            changed = list(dict.fromkeys(event.stream for event in events))
            messages += await self._states(changed)
            messages += self._beats({self._make.number(stream) for stream in changed}, following)
        return messages, following

    async def _retire(self) -> bool:
        """Deletes the states of streams that ended long enough ago, as far as the next batch of the log tells; False when
        it tells of none that is old enough."""
        held = self._checkpoint
        if not self._what.final:
            return False
        old = await self._source.older(held.retired, held.position, self._what.keep, _BATCH)
        if not old:
            return False
        ended = [event.stream for event in old if event.type in self._what.final]
        numbers = [self._make.number(stream) for stream in ended]
        following = replace(held, streams=held.counted(retired=numbers), retired=old[-1].position)
        deletions = [self._make.deletion(stream) for stream in ended]
        await self._transact(deletions + self._beats(set(numbers), following), following)
        _retired.inc(len(ended))
        return True

    async def _transact(self, messages: Sequence[Message], following: Checkpoint) -> None:
        """One Kafka transaction, then the checkpoint. A crash between the two sends it again; readers drop that by version."""
        if messages:
            ends = await self._producer.transaction(messages, self._checkpoint.written.offsets)
            following = replace(following, written=following.written.moved(ends))
        if following != self._checkpoint:
            self._checkpoint = await self._source.move(self._checkpoint, following)
            _position.set(following.position)

    async def _states(self, streams: Sequence[str]) -> list[Message]:
        return [self._make.state(state) for state in await self._source.states(streams)]

    def _beats(self, numbers: Iterable[int], at: Checkpoint) -> list[Message]:
        if self._what.states_topic is None:
            return []
        return [self._make.beat(number, at.position, at.counted()[number], at.generation) for number in numbers]
