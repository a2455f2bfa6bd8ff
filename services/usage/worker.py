"""Request events in, totals and marks out: what the usage worker stores, and how it publishes what changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog

from services.usage import store
from services.usage.domain import Count, count
from services.usage.settings import Settings
from shared.consumer.loop import Consumer, Kind, Subscription
from shared.events import EventData, encode
from shared.events.requests import KeyUsage, RequestEvent, UsageMark
from shared.events.topics import KEY_USAGE, REQUEST_EVENTS, USAGE_MARKS, Topic
from shared.kafka import Message, Partition, Producer
from shared.leader import Leader
from shared.partitions import partition_for
from shared.postgres import AWAY, Connection, Pool
from shared.relay.checkpoint import Written
from shared.relay.survey import survey, watch
from shared.telemetry import Check

SOURCE = "keyledger/usage"
_LOCK = 7_316_004
_BATCH = 1000
_AT_ONCE = 20_000
_MARKS_EVERY = 0.2
_USAGE_EVERY = 1.0
_USAGE_SHARE = 0.1
_USAGE_LATE = 2.5
"""Totals are published for a share of the time, beside the consumer; a pass over them that takes longer (s), for all of it."""
_log = structlog.get_logger()


def request_consumer(settings: Settings, pool: Pool) -> Consumer:
    """The consumer of request events into the log and the counters."""
    return Consumer(settings.kafka, pool, "usage", [Subscription(REQUEST_EVENTS, Kind.MARKS, Requests)])


class Requests:
    """Request events on their way into the log and the counters."""

    def __init__(self) -> None:
        self._rows = store.Rows()
        self._counts: dict[int, Count] = {}

    def add(self, events: Sequence[RequestEvent]) -> None:
        """Puts them into the form in which they are stored."""
        self._rows.add(events)
        count(self._counts, events)

    async def store(self, connection: Connection) -> None:
        """Stores them."""
        await store.record(connection, self._rows, self._counts)


class Publisher:
    """Publishes the keys' totals and the request logs' marks that changed, for as long as `run` runs.

    One worker leads; what one that was stopped still holds when it wakes up is refused (`shared.leader`): a mark never
    goes back. An end may come at any moment: what was sent and is still flagged is sent again.
    """

    def __init__(self, settings: Settings) -> None:
        self._leader = Leader(settings, settings.database, SOURCE, _LOCK, [KEY_USAGE, USAGE_MARKS])
        self._settings = settings
        self._epoch = 1
        self._written = Written()
        self._turn = store.Turn()
        self._pass: AsyncGenerator[list[store.Usage]] | None = None
        self._due = 0.0
        self._clock = time.monotonic

    def checks(self) -> dict[str, Callable[[], Check]]:
        """For readiness: that this publisher leads, or stands by for the one that does."""
        return {"publisher": lambda: self._leader.check}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; what failed is shown in readiness and tried again."""
        await self._leader.run(self._term, stop)

    async def _term(self, connection: Connection, producer: Producer, stop: asyncio.Event) -> None:
        await self._reconcile(connection)
        watching = asyncio.ensure_future(watch(self._settings.kafka, lambda: self._written))
        self._pass, self._due = None, 0.0
        try:
            await self._publish(connection, producer, stop, watching)
        finally:
            watching.cancel()
            if self._pass:
                with suppress(*AWAY):
                    await self._pass.aclose()

    async def _reconcile(self, connection: Connection) -> None:
        """Publishes all again when the topics are not those, or lack what was the last, that was published to."""
        self._epoch, written = await store.publication(connection)
        topics = [KEY_USAGE.name, USAGE_MARKS.name]
        found = await survey(self._settings.kafka, topics, written, known_only=True)
        if found.lost:
            _log.warning("publishing again what Kafka has lost", partitions=sorted(map(str, found.lost)))
            await store.publish_all_again(connection)
        # Only now is it forgotten what was lost.
        self._written = found.whole
        await store.save_publication(connection, self._written)

    async def _publish(
        self, connection: Connection, producer: Producer, stop: asyncio.Event, watching: asyncio.Future[None]
    ) -> None:
        while not stop.is_set():
            if watching.done():
                watching.result()
            due = self._clock() + _MARKS_EVERY
            marks, self._turn = await store.changed_marks(connection, REQUEST_EVENTS.name, self._turn, _BATCH)
            until = due if self._late() else self._clock() + _USAGE_SHARE * _MARKS_EVERY
            # In one transaction, however long Kafka takes for it: neither waits for the other, nor for ever.
            messages = [self._mark(mark) for mark in marks] + await self._totals(connection, until)
            await self._send(connection, producer, messages)
            await store.marks_published(connection, marks)
            while self._pass and self._clock() < until:
                await self._send(connection, producer, await self._totals(connection, until))
            self._leader.check = Check(True, "leading")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, due - self._clock()))

    def _late(self) -> bool:
        return self._pass is not None and self._clock() > self._due - _USAGE_EVERY + _USAGE_LATE

    async def _totals(self, connection: Connection, until: float) -> list[Message]:
        """The next of a pass over the totals that changed, as many as come until then, a part at least; none between passes.

        Whoever asks has published those before.
        """
        if self._pass is None and self._clock() >= self._due:
            self._pass, self._due = store.changed_usage(connection, _BATCH), self._clock() + _USAGE_EVERY
        messages: list[Message] = []
        while self._pass:
            part = await anext(self._pass, None)
            if part is None:
                self._pass = None
            if not part:
                break
            messages += [self._usage(row) for row in part]
            if len(messages) >= _AT_ONCE or self._clock() >= until:
                break
        return messages

    async def _send(self, connection: Connection, producer: Producer, messages: Sequence[Message]) -> None:
        if not messages:
            return
        self._written = self._written.moved(await producer.transaction(messages, self._written.offsets))
        await store.save_publication(connection, self._written)

    def _usage(self, row: store.Usage) -> Message:
        key = f"key-{row.key_id}"
        return self._message(KEY_USAGE, key, f"{key}@{self._epoch}.{row.usage_count}", KeyUsage, row)

    def _mark(self, mark: UsageMark) -> Message:
        key = f"{mark.log}/{mark.partition}"
        name = f"{key}@{self._epoch}.{mark.mark}.{mark.next_offset}"
        return self._message(USAGE_MARKS, key, name, UsageMark, mark.model_dump(mode="json"))

    def _message(self, topic: Topic, key: str, name: str, kind: type[EventData], data: Any) -> Message:
        """Unchecked: there may be thousands in a second, beside the consumer on one loop."""
        value = encode(
            kind.TYPE,
            kind.SCHEMA_VERSION,
            data,
            id=name,
            source=SOURCE,
            time=datetime.now(UTC),
            subject=key,
            epoch=self._epoch,
        )
        partition = Partition(topic.name, partition_for(key.encode(), self._settings.partitions))
        return Message(partition, key.encode(), value)
