"""Ships the request logs to `request-events`: each log in order in each partition, at least once, always the same bytes.

A lane is one partition: its records that Kafka has not acknowledged, of which one batch at a time is on its way. After
any failure the producer is thrown away without a flush and a new one goes on with exactly those records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from services.edge.agent.complaint import Complaint
from services.edge.agent.coverage import Mark
from services.edge.agent.lane import Lane
from services.edge.agent.tail import Item, Tail
from services.edge.agent.topics import ensure
from services.edge.requestlog.reader import LogUnreadableError, logs
from shared.events.topics import REQUEST_EVENTS
from shared.kafka import Batch, KafkaUnavailable, Partition, Producer, cluster_id
from shared.settings import Base

_POLL = 0.02
_DISCOVER = 0.1
_DISK_AGAIN = 1.0
_MAX_WAITING = 12 << 20
"""Bytes of values in all lanes: some batches for each, on their way and next."""
_ACK_SECONDS = (5.0, 60.0)
_BACKOFF = (0.1, 0.2, 0.5, 1.0, 2.0)
_log = structlog.get_logger()


class Shipper:
    """Follows all request logs in a directory, for as long as `run` runs."""

    def __init__(self, settings: Base, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        self._unreadable: set[str] = set()
        self._cluster = ""
        self._discovered = 0.0
        self._told = asyncio.Event()
        self._elsewhere = asyncio.Event()
        self._complaint = Complaint("shipping interrupted")
        self._unread = Complaint("a request log can't be read now")
        self._failing: dict[str, float] = {}
        self._marks: dict[str, dict[int, Mark]] = {}
        self._next_offsets: dict[int, int] = {}
        self.lanes = [Lane(number) for number in range(settings.partitions)]
        self.tails: dict[str, Tail] = {}
        self.shipped = 0
        self.again = 0
        self.connected = False

    @property
    def waiting(self) -> int:
        """Records that were read and not acknowledged."""
        return sum(map(len, self.lanes))

    @property
    def logs(self) -> int:
        """Logs on disk."""
        return len(self.tails) + len(self._unreadable)

    @property
    def unreadable(self) -> int:
        """Logs that can't be shipped, or not now."""
        return len(self._unreadable) + len(self._failing)

    @property
    def oldest_seconds(self) -> float:
        """The age of the oldest record that is not acknowledged; 0 when there is none."""
        times = [lane.oldest_ms for lane in self.lanes if lane.oldest_ms is not None]
        return max(0.0, time.time() - min(times) / 1000) if times else 0.0

    async def run(self) -> None:
        """For ever, until cancelled. Nothing is shipped before `tell`: what is stored needs not be sent again."""
        await self._told.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read())
            group.create_task(self._send())

    async def drained(self) -> None:
        """Returns when every log has ended and all of it is acknowledged."""
        self._discovered = 0.0
        self._discover()
        while not (self._told.is_set() and all(tail.done for tail in self.tails.values())):  # noqa: ASYNC110 - files
            await asyncio.sleep(_POLL)

    def tell(self, marks: dict[str, dict[int, Mark]], next_offsets: Mapping[int, int]) -> None:
        """All that the usage service says it has, by log and partition, and its next offset in each partition."""
        self._marks = marks
        self._told.set()
        for log, known in marks.items():
            for partition, mark in known.items():
                self.take(log, partition, mark, next_offsets.get(partition, 0))

    def take(self, log: str, partition: int, mark: Mark, next_offset: int) -> None:
        """What the usage service says it has of one log in one partition, and its next offset there."""
        self._next_offsets[partition] = next_offset
        tail = self.tails.get(log)
        if tail is None and log in self._marks:
            self._marks[log][partition] = mark
        elif tail and partition < tail.partitions and tail.take(partition, mark):
            self._say_again(tail, "its mark went back")

    def recognise(self, cluster: str) -> None:
        """Which Kafka cluster is there: what another one had acknowledged is not in this one."""
        if self._cluster not in ("", cluster):
            self._next_offsets.clear()
            for lane in self.lanes:
                lane.end = 0
            for tail in self.tails.values():
                tail.ship_again(forget=True)
                self._say_again(tail, "another Kafka cluster")
            self._elsewhere.set()
        self._cluster = cluster

    def forget(self, log: str) -> None:
        """The log is removed."""
        del self.tails[log]
        self._failing.pop(log, None)

    def check_lost(self, now: float) -> None:
        """Ships again what was acknowledged and is lost, as the marks show. `now`: monotonic seconds."""
        for tail in self.tails.values():
            if tail.check_lost(self._next_offsets, now):
                self._say_again(tail, "the broker lost acknowledged records")

    def ends(self) -> dict[int, int]:
        """By partition, the offset after the last acknowledged record."""
        return {lane.number: lane.end for lane in self.lanes}

    def compare(self, acknowledged: Mapping[int, int], found: Mapping[int, int]) -> None:
        """Ships again when a partition, asked after `ends` was taken, ends before that."""
        shorter = [number for number, end in acknowledged.items() if found.get(number, end) < end]
        if shorter:
            self._shorter(shorter[0])

    async def _read(self) -> None:
        while True:
            self._discover()
            busy = False
            for tail in self.tails.values():
                if sum([lane.bytes for lane in self.lanes]) < _MAX_WAITING:
                    before = tail.position
                    for item in self._read_one(tail):
                        self.lanes[item.partition].put(item)
                    busy |= tail.position != before
            await asyncio.sleep(0 if busy else _POLL)

    def _read_one(self, tail: Tail) -> list[Item]:
        """A piece of one log. One that the disk won't give now is asked for again later, and no hindrance to the others."""
        if tail.id in self._failing and time.monotonic() < self._failing[tail.id]:
            return []
        try:
            items = tail.read()
        except OSError as error:
            self._failing[tail.id] = time.monotonic() + _DISK_AGAIN
            self._unread.tell(error)
            return []
        if self._failing.pop(tail.id, None) is not None:
            self._unread.over()
        return items

    def _discover(self) -> None:
        if time.monotonic() - self._discovered < _DISCOVER:
            return
        self._discovered = time.monotonic()
        try:
            found = logs(self._directory)
        except OSError as error:
            self._unread.tell(error)
            return
        for reader in found:
            if reader.id not in self.tails and reader.id not in self._unreadable:
                try:
                    self._add(Tail(reader))
                except LogUnreadableError:
                    self._give_up(reader.id, "none of its headers can be read")
                except OSError as error:
                    self._unread.tell(error)

    def _add(self, tail: Tail) -> None:
        if tail.partitions != self._settings.partitions:
            self._give_up(tail.id, f"it was written for {tail.partitions} partitions, not {self._settings.partitions}")
            return
        tail.believe(self._marks.get(tail.id, {}))
        self.tails[tail.id] = tail

    def _give_up(self, log: str, why: str) -> None:
        self._unreadable.add(log)
        _log.error("a request log can't be shipped", log=log, reason=why)

    async def _send(self) -> None:
        failures = 0
        least, most = _ACK_SECONDS
        while True:
            before = self.shipped
            try:
                # Longer each time: a broker that is only slow must not get the same records again and again.
                await self._session(min(least * 2**failures, most))
            except* KafkaUnavailable as group:
                self._complaint.tell(first_of(group))
            failures = 0 if self.shipped > before else failures + 1
            await asyncio.sleep(_BACKOFF[min(failures, len(_BACKOFF) - 1)])

    async def _session(self, patience: float) -> None:
        """The life of one producer: until it fails, or an acknowledgement takes longer than `patience` seconds."""
        await ensure(self._settings, REQUEST_EVENTS)
        self.recognise(await cluster_id(self._settings.kafka))
        self._elsewhere.clear()
        producer = await Producer.open(self._settings.kafka)
        try:
            self.connected = True
            async with asyncio.TaskGroup() as group:
                for lane in self.lanes:
                    group.create_task(self._fly(lane, producer, patience))
                await self._elsewhere.wait()
                raise KafkaUnavailable("another Kafka cluster is there now")
        finally:
            self.connected = False
            for lane in self.lanes:
                lane.restore()
            await producer.abandon()

    async def _fly(self, lane: Lane, producer: Producer, patience: float) -> None:
        partition = Partition(REQUEST_EVENTS.name, lane.number)
        while True:
            await lane.filled.wait()
            batch = producer.batch()
            if not lane.load(batch):
                continue
            offset = await _acknowledged(producer, batch, partition, patience)
            self._complaint.over()
            before = lane.end
            self.shipped += lane.land(offset)
            if offset < before:
                self._shorter(lane.number)

    def _shorter(self, partition: int) -> None:
        """A broker that lost the end of one partition may have lost that of others: everything uncovered goes again."""
        for lane in self.lanes:
            lane.end = 0
        for tail in self.tails.values():
            tail.ship_again()
            self._say_again(tail, f"partition {partition} ends before what Kafka has acknowledged")

    def _say_again(self, tail: Tail, why: str) -> None:
        self.again += 1
        _log.warning("a request log is shipped again", log=tail.id, reason=why)


async def _acknowledged(producer: Producer, batch: Batch, partition: Partition, patience: float) -> int:
    try:
        async with asyncio.timeout(patience):
            return await producer.send(batch, partition)
    except TimeoutError:
        raise KafkaUnavailable(f"no acknowledgement within {patience:.0f} s") from None


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a group of groups that is none."""
    error = group.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error
