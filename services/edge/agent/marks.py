"""Follows `usage-marks`: what the usage service has stored of this edge's request logs, told to the shipper.

The topic is compacted and read from its start at each connection; what is in the past of a key is passed over, so a mark
seems to go back only when it did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from services.edge.agent.complaint import Complaint
from services.edge.agent.coverage import Mark
from services.edge.agent.shipper import Shipper
from services.edge.agent.topics import exists
from services.edge.requestlog.reader import logs
from shared.events.topics import REQUEST_EVENTS, USAGE_MARKS
from shared.kafka import KafkaUnavailable, Partition, Reader, Record, cluster_id, still_cluster
from shared.settings import Base

_TURN_MS = 250
_LOOK_EVERY = 10.0
_BACKOFF = 1.0
_ATTEMPTS = 5
_log = structlog.get_logger()


class _Data(msgspec.Struct, frozen=True):
    log: str
    partition: int
    mark: int
    gaps: tuple[tuple[int, int], ...]
    next_offset: int
    closed: bool


class _UsageMark(msgspec.Struct, frozen=True):
    """The fast twin of `CloudEvent[UsageMark]`."""

    data: _Data


_decode = msgspec.json.Decoder(_UsageMark).decode


class MarkReader:
    """Tells `shipper` all there is once, at the start, and then what changes, for as long as `run` runs."""

    def __init__(self, settings: Base, directory: Path, shipper: Shipper) -> None:
        self._settings = settings
        self._directory = directory
        self._shipper = shipper
        self._complaint = Complaint("marks can't be read")
        self.problem = "starting"

    async def run(self) -> None:
        """For ever, until cancelled. Without the topic the shipper goes on without marks, and nothing is deleted."""
        failures = 0
        while True:
            try:
                cluster = await cluster_id(self._settings.kafka)
                self._shipper.recognise(cluster)
                if await exists(self._settings, USAGE_MARKS):
                    failures += 1
                    await self._session(cluster)
                self.problem = f"topic {USAGE_MARKS.name} is not there yet"
                self._shipper.tell({}, {})
            except KafkaUnavailable as error:
                self.problem = str(error)
                self._complaint.tell(error)
            if failures >= _ATTEMPTS:
                # Kafka is there, its marks can't be read: rather ship too much than nothing.
                failures = 0
                self._shipper.tell({}, {})
            await asyncio.sleep(_BACKOFF)

    async def _session(self, cluster: str) -> None:
        """The life of one Kafka client: until it fails."""
        reader = await Reader.open(self._settings.kafka, [USAGE_MARKS.name])
        try:
            await self._load(reader)
            self.problem, looked = "", time.monotonic()
            self._complaint.over()
            while True:
                found = await reader.fetch(timeout_ms=_TURN_MS)
                for data in _read(record for records in found.values() for record in records):
                    self._shipper.take(data.log, data.partition, _mark(data), data.next_offset)
                if time.monotonic() - looked > _LOOK_EVERY:
                    await self._look(reader, cluster)
                    looked = time.monotonic()
        finally:
            await reader.close()

    async def _look(self, reader: Reader, cluster: str) -> None:
        """Whether Kafka still has what it acknowledged: nothing else may ever be written where a lost record was."""
        await still_cluster(self._settings.kafka, cluster)
        acknowledged = self._shipper.ends()
        partitions = [Partition(REQUEST_EVENTS.name, number) for number in acknowledged]
        bounds = await reader.bounds(partitions)
        self._shipper.compare(acknowledged, {p.partition: end for p, (_, end) in bounds.items()})

    async def _load(self, reader: Reader) -> None:
        """Reads to the end, keeping the last mark of each of the logs that are here."""
        ours = {log.id for log in logs(self._directory)}
        bounds = await reader.bounds(reader.assignment())
        for partition, (first, _) in bounds.items():
            reader.seek(partition, first)
        marks: dict[str, dict[int, Mark]] = {log: {} for log in ours}
        next_offsets: dict[int, int] = {}
        async for found in reader.read_up_to({partition: end for partition, (_, end) in bounds.items()}):
            for data in _read(record for records in found.values() for record in records):
                next_offsets[data.partition] = max(next_offsets.get(data.partition, 0), data.next_offset)
                if data.log in ours or data.log in self._shipper.tails:
                    marks.setdefault(data.log, {})[data.partition] = _mark(data)
        self._shipper.tell(marks, next_offsets)


def _mark(data: _Data) -> Mark:
    return Mark(data.mark, data.gaps, data.closed)


def _read(records: Iterable[Record]) -> Iterable[_Data]:
    for record in records:
        try:
            if record.value is not None:
                yield _decode(record.value).data
        except (msgspec.DecodeError, RecursionError) as error:
            _log.warning("unreadable usage mark", key=record.key, offset=record.offset, error=str(error))
