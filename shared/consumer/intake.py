"""What a consumer takes of the records that it read: without duplicates, poison apart. Pure.

Three kinds of topics. Request events are deduplicated by the marks of their log (`shared.consumer.marks`), relayed events by
their stream's version; of compacted topics the handler itself keeps the greater, so nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import msgspec

from shared.consumer.marks import START, Gaps, Mark, close, take
from shared.consumer.records import (
    Fetched,
    LogRecord,
    LogRecords,
    StreamRecord,
    read_event,
    read_stream_records,
    reason,
)
from shared.events.requests import LogClosed, RequestEvent, RequestMetered
from shared.events.topics import REQUEST_EVENTS
from shared.kafka import Partition, Record

RETENTION = timedelta(milliseconds=int(REQUEST_EVENTS.config["retention.ms"]))
AHEAD = timedelta(minutes=1)
_BY_BROKER = 1  # a record's timestamp is the broker's (LogAppendTime)
_METERED = RequestMetered.TYPE


class Kind(Enum):
    """How a topic's duplicates are known: by the marks of request logs, by stream versions, or by the handler."""

    MARKS = "marks"
    VERSIONS = "versions"
    LATEST = "latest"


_NEVER = -2  # no record's predecessor


@dataclass(slots=True)
class LogMark:
    """How far a request log is taken in one partition. `closed`: its last record is; `gone`: all of it, everywhere."""

    last: int = START.last
    gaps: Gaps = START.gaps
    closed: bool = False
    gone: bool = False
    changed: bool = False

    def __post_init__(self) -> None:
        if self.gone:
            self.last = _NEVER

    @property
    def mark(self) -> Mark:
        """As the rules have it."""
        return Mark(self.last, self.gaps)

    def take(self, sequence: int, previous: int) -> bool:
        """Whether the record is new; the mark moves if it is."""
        if self.gone:
            return False
        new, (self.last, self.gaps) = take(self.mark, sequence, previous)
        self.changed |= new
        return new

    def close(self, sequence: int, previous: int) -> None:
        """Takes the log's closing record, as often as it comes."""
        if not self.gone:
            before = self.mark, self.closed
            (self.last, self.gaps), self.closed = close(self.mark, sequence, previous), True
            self.changed |= before != (self.mark, self.closed)


@dataclass(slots=True)
class StreamVersion:
    """How far a stream is taken. `unread`: records of it that were parked since, of which not even the version is known."""

    version: int = 0
    unread: int = 0
    changed: bool = False

    def take(self, version: int) -> bool | None:
        """Whether a version is new (then it is held), a duplicate (False), or follows on something missing (None).

        A parked record whose version can't be read may be the one that is missing; so it is passed, as often as there
        are such records.
        """
        if version <= self.version:
            return False
        if version > self.version + 1 + self.unread:
            return None
        self.version, self.unread, self.changed = version, 0, True
        return True

    def park(self) -> None:
        """Takes note of a parked record of unknown version."""
        self.unread, self.changed = self.unread + 1, True


Poison = tuple[Partition, Record, str]
"""A record to park, where it lies, and why."""


@dataclass
class Intake:
    """What became of records of one topic. `origins` are where those of `events` lie, one by one; `owners`, whose some are.

    `next_offsets` is where each partition goes on, if not behind its records; one in `stopped` (with the reason) must not
    be read further.
    """

    events: list[Any] = field(default_factory=list)
    origins: list[tuple[Partition, Record]] = field(default_factory=list)
    owners: set[str] = field(default_factory=set)
    poison: list[Poison] = field(default_factory=list)
    next_offsets: dict[Partition, int] = field(default_factory=dict)
    stopped: dict[Partition, str] = field(default_factory=dict)
    taken: int = 0
    duplicates: int = 0
    clamped: int = 0


def by_marks(
    part: Intake, partition: Partition, read: LogRecords, marks: Mapping[str, LogMark], now: datetime
) -> list[RequestEvent]:
    """The request events that their logs' marks have not had; moves the marks, poison's too.

    An event's time is held within [received - the topic's retention, received + 1 min], where received is when the broker
    had it (`now` where it does not say): a clock that is wrong elsewhere must not put rows where nobody looks.
    """
    if read.events is not None:
        return _in_one_go(part, partition, read.records, read.events, marks, now)
    part.poison += [(partition, record, error) for record, error in read.nameless]
    return [event for _, event in one_by_one(part, partition, read.found, marks, now)]


def one_by_one(
    part: Intake, partition: Partition, records: Iterable[LogRecord], marks: Mapping[str, LogMark], now: datetime
) -> list[tuple[Record, RequestEvent]]:
    """The same, each event with its record."""
    taken = [(each.record, _by_mark(part, partition, each, marks[each.log], now)) for each in records]
    return [(record, event) for record, event in taken if event is not None]


def _in_one_go(
    part: Intake,
    partition: Partition,
    records: Sequence[Record],
    events: Sequence[RequestEvent],
    marks: Mapping[str, LogMark],
    now: datetime,
) -> list[RequestEvent]:
    """An event that follows on its mark, as nearly all do, needs no more than that the mark moves to it."""
    taken: list[RequestEvent] = []
    received, (low, high) = None, _bounds(now)
    for record, event in zip(records, events, strict=True):
        by_broker = record.timestamp if record.timestamp_type == _BY_BROKER else None
        if by_broker != received:
            received, (low, high) = by_broker, _bounds(_received(record, now))
        data = event.data
        mark = marks[event.source]
        if data.previous == mark.last and low <= event.time <= high and event.type == _METERED:
            mark.last = data.sequence
            mark.changed = True
            taken.append(event)
        else:
            odd = LogRecord(record, event.source, data.sequence, data.previous, event)
            taken += [event for _, event in one_by_one(part, partition, [odd], marks, now)]
    return taken


def _by_mark(part: Intake, partition: Partition, found: LogRecord, mark: LogMark, now: datetime) -> RequestEvent | None:
    record, _, sequence, previous, event, error = found
    if event is not None and event.type == LogClosed.TYPE:
        mark.close(sequence, previous)
    elif not mark.take(sequence, previous):
        part.duplicates += 1
    elif event is None:
        part.poison.append((partition, record, error))
    elif event.type == _METERED:
        low, high = _bounds(_received(record, now))
        clamped = min(max(event.time, low), high)
        part.clamped += clamped is not event.time
        return event if clamped is event.time else msgspec.structs.replace(event, time=clamped)
    return None


def _bounds(received: datetime) -> tuple[datetime, datetime]:
    return received - RETENTION, received + AHEAD


def _received(record: Record, now: datetime) -> datetime:
    return datetime.fromtimestamp(record.timestamp / 1000, UTC) if record.timestamp_type == _BY_BROKER else now


def read_streams(fetched: Fetched) -> dict[Partition, list[StreamRecord]]:
    """The records of a relayed topic, by partition."""
    return {partition: read_stream_records(records) for partition, records in fetched.items()}


def by_versions(
    read: Mapping[Partition, Iterable[StreamRecord]],
    versions: Mapping[str, StreamVersion],
    parked: Collection[tuple[int, int]] = (),
) -> Intake:
    """Takes each relayed event that follows on its stream's version, which it moves on; lower ones are duplicates.

    A higher one means that something before it is missing: its partition stops there. Poison moves the version on like
    any other event. `parked` has partition and offset of records that were parked when they were read before.
    """
    part = Intake()
    for partition, records in read.items():
        for record, stream, version, event, error in records:
            if not version:
                if (partition.partition, record.offset) in parked:
                    part.duplicates += 1
                    continue
                part.poison.append((partition, record, error))
                if stream:
                    versions[stream].park()
                continue
            held = versions[stream]
            before = held.version
            new = held.take(version)
            if new is None:
                part.next_offsets[partition] = record.offset
                part.stopped[partition] = (
                    f"{stream} goes on with version {version} at offset {record.offset}; {before} is held"
                )
                break
            if not new:
                part.duplicates += 1
            elif event is None:
                part.poison.append((partition, record, error))
            else:
                part.events.append(event)
                part.origins.append((partition, record))
    return part


def latest(fetched: Fetched) -> Intake:
    """Takes everything but deletions (null values), which say nothing to somebody who keeps the greater."""
    part = Intake()
    for partition, record in ((p, record) for p, records in fetched.items() for record in records):
        if record.value is None:
            continue
        try:
            part.events.append(read_event(record))
            part.origins.append((partition, record))
        except Exception as error:  # no bytes may end the consumer
            part.poison.append((partition, record, reason(error)))
    return part
