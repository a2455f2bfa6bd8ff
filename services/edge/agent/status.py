"""Tells on `edge-status` what this edge has applied: at once after each change, and each second that it is alive.

The keys API waits for it, so it has a producer of its own that no flood of request events is ahead of.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

from services.edge.agent.complaint import Complaint
from services.edge.agent.follower import Follower
from services.edge.agent.topics import ensure
from shared.events import CONTENT_TYPE, CloudEvent
from shared.events.requests import EdgeStatus
from shared.events.topics import EDGE_STATUS
from shared.kafka import KafkaUnavailable, Partition, Producer
from shared.partitions import partition_for
from shared.settings import Base

_EVERY = 1.0
_DEADLINE = 5.0
_FAREWELL = 2.0
_BACKOFF = 0.5

Status = Literal["live", "stopped", "retired"]


class StatusPublisher:
    """Publishes how far `follower` is, for as long as `run` runs."""

    def __init__(self, settings: Base, edge: str, follower: Follower) -> None:
        self._settings = settings
        self._edge = edge
        self._follower = follower
        self._key = edge.encode()
        self._partition = Partition(EDGE_STATUS.name, partition_for(self._key, settings.partitions))
        self._wake = asyncio.Event()
        self._complaint = Complaint("the edge's status can't be sent")
        self._producer: Producer | None = None
        self.sent = 0

    def wake(self) -> None:
        """There is news: it is sent without delay, or as soon as what is being sent is acknowledged."""
        self._wake.set()

    async def run(self) -> None:
        """For ever, until cancelled; the producer stays for `farewell`."""
        while True:
            try:
                await self._session()
            except KafkaUnavailable as error:
                self._complaint.tell(error)
            await self.close()
            await asyncio.sleep(_BACKOFF)

    async def farewell(self) -> None:
        """Says that the edge has stopped, if Kafka can be reached; within about two seconds."""
        if self._producer is not None:
            with suppress(KafkaUnavailable, TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await self._send(self._producer, "stopped")

    async def close(self) -> None:
        """Lets go of the producer."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.abandon()

    async def _session(self) -> None:
        await ensure(self._settings, EDGE_STATUS)
        self._producer = await Producer.open(self._settings.kafka)
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout(_DEADLINE):
                    await self._send(self._producer, "live")
            except TimeoutError:
                raise KafkaUnavailable(f"no acknowledgement within {_DEADLINE:.0f} s") from None
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self._wake.wait()

    async def _send(self, producer: Producer, status: Status) -> None:
        batch = producer.batch()
        event = self._describe(status)
        batch.append(timestamp=None, key=self._key, value=event.encode(), headers=[CONTENT_TYPE])
        await producer.send(batch, self._partition)
        self.sent += 1
        self._complaint.over()

    def _describe(self, status: Status) -> CloudEvent[EdgeStatus]:
        follower = self._follower
        epoch, applied = follower.applied
        return CloudEvent[EdgeStatus](
            id=uuid4().hex,
            source=f"keyledger/edge/{self._edge}",
            type=EdgeStatus.TYPE,
            time=datetime.now(UTC),
            subject=self._edge,
            schemaversion=EdgeStatus.SCHEMA_VERSION,
            epoch=epoch,
            data=EdgeStatus(
                edge=self._edge, status=status, ready=follower.ready, applied=applied, freshness=follower.freshness
            ),
        )
