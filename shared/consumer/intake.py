"""What a consumer takes of the records that it read: decoded, without duplicates, poison apart. Pure.

Three kinds of topics. Request events are deduplicated by the marks of their log (`shared.consumer.marks`), relayed events by their
stream's version; of compacted topics the handler itself keeps the greater, so nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from shared.consumer.marks import START, Mark, close, take
from shared.events.requests import LogClosed, RequestEvent, RequestMetered, decode_request
from shared.events.topics import REQUEST_EVENTS
from shared.kafka import Partition, Record

RETENTION = timedelta(milliseconds=int(REQUEST_EVENTS.config["retention.ms"]))
AHEAD = timedelta(minutes=1)
_BIGINT = 2**63
_LONGEST = 366 * 86_400  # seconds

Batch = Mapping[Partition, list[Record]]


class Kind(Enum):
    """How a topic's duplicates are known: by the marks of request logs, by stream versions, or by the handler."""

    MARKS = "marks"
    VERSIONS = "versions"
    LATEST = "latest"


class Event(msgspec.Struct, frozen=True):
    """A record of every topic but `request-events`: the CloudEvents attributes that consumers use. `data` is not validated."""

    type: str
    time: datetime
    data: dict[str, Any]
    subject: str = ""
    epoch: int = 0
    streamversion: int = 0


@dataclass(slots=True)
class LogMark:
    """How far a request log is taken in one partition. `closed`: its last record is; `gone`: all of it, everywhere."""

    mark: Mark = START
    closed: bool = False
    gone: bool = False
    changed: bool = False

    def take(self, sequence: int, previous: int) -> bool:
        """Whether the record is new; the mark moves if it is, and its gaps may close if it is not."""
        if self.gone:
            return False
        held = self.mark
        new, self.mark = take(held, sequence, previous)
        self.changed |= held != self.mark
        return new

    def close(self, sequence: int, previous: int) -> None:
        """Takes the log's closing record, as often as it comes."""
        if not self.gone:
            held = self.mark, self.closed
            self.mark, self.closed = close(self.mark, sequence, previous), True
            self.changed |= held != (self.mark, self.closed)


@dataclass
class Intake:
    """What became of a batch of one topic. `records` are those of `events`, one by one; `poison` has the reasons.

    `next_offsets` is where each partition goes on; a partition in `stopped` (with the reason) must not be read further.
    """

    events: list[Any] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    poison: list[tuple[Record, str]] = field(default_factory=list)
    next_offsets: dict[Partition, int] = field(default_factory=dict)
    stopped: dict[Partition, str] = field(default_factory=dict)
    duplicates: int = 0
    clamped: int = 0


class Request(NamedTuple):
    """A record of `request-events`, by its identity. `event` is absent when the rest is unreadable: why is `error`."""

    record: Record
    log: str
    sequence: int
    previous: int
    event: RequestEvent | None
    error: str = ""


_decode_event = msgspec.json.Decoder(Event).decode


def read_requests(batch: Batch) -> tuple[list[Request], list[tuple[Record, str]]]:
    """The batch's request events, and the records of which not even the identity can be read."""
    requests: list[Request] = []
    lost: list[tuple[Record, str]] = []
    for records in batch.values():
        for record in records:
            try:
                event = decode_request(record.value or b"")
                data = event.data
                _plausible(event, record.value or b"")
                requests.append(_checked(Request(record, event.source, data.sequence, data.previous, event)))
            except (ValueError, TypeError) as error:
                try:
                    requests.append(_by_headers(record, reason(error)))
                except (ValueError, KeyError):
                    lost.append((record, reason(error)))
    return requests, lost


def _by_headers(record: Record, error: str) -> Request:
    headers = dict(record.headers)
    log, sequence, previous = headers["source"].decode(), int(headers["sequence"]), int(headers["previous"])
    return _checked(Request(record, log, sequence, previous, None, error))


def _plausible(event: RequestEvent, value: bytes) -> None:
    """`ValueError` for an event that no edge can have written, so that every service parks the same ones."""
    data = event.data
    if event.time.tzinfo is None:
        raise ValueError("a time without an offset from UTC")
    if b"\\u0000" in value and any("\x00" in text for text in msgspec.structs.astuple(data) if isinstance(text, str)):
        raise ValueError("text with NUL")
    if event.type == RequestMetered.TYPE and not (
        0 < data.key_id < _BIGINT
        and 0 < data.owner_id < _BIGINT
        and 0 <= data.key_version < _BIGINT
        and 0 <= data.status_code < 1000
        and 0 <= data.response_time < _LONGEST
    ):
        raise ValueError("not a metered request")


def _checked(request: Request) -> Request:
    """Only an identity that the marks can hold."""
    log = request.log
    if -1 <= request.previous < request.sequence < _BIGINT and len(log) <= 64 and log.isascii() and log.isprintable():
        return request
    raise ValueError("not the identity of a record of a request log")


def by_marks(requests: Iterable[Request], marks: Mapping[tuple[str, int], LogMark], now: datetime) -> Intake:
    """Takes each request event that its log's mark has not had; moves the marks, poison's too.

    An event's time is held within [now - the topic's retention, now + 1 min]: a clock that is wrong elsewhere must not
    put rows where nobody looks.
    """
    intake = Intake()
    earliest, latest = now - RETENTION, now + AHEAD
    for record, log, sequence, previous, event, error in requests:
        held = marks[log, record.partition]
        if event is not None and event.type == LogClosed.TYPE:
            held.close(sequence, previous)
        elif not held.take(sequence, previous):
            intake.duplicates += 1
        elif event is None:
            intake.poison.append((record, error))
        elif event.type == RequestMetered.TYPE:
            clamped = min(max(event.time, earliest), latest)
            intake.clamped += clamped is not event.time
            intake.events.append(event if clamped is event.time else msgspec.structs.replace(event, time=clamped))
            intake.records.append(record)
    return intake


def streams_of(batch: Batch) -> set[str]:
    """The streams that a batch of relayed events may touch: their names are the Kafka keys."""
    keys = {record.key for records in batch.values() for record in records if record.key and b"\x00" not in record.key}
    return {key.decode(errors="replace") for key in keys}


def by_versions(batch: Batch, versions: dict[str, int]) -> Intake:
    """Takes each relayed event that follows on its stream's version, which it moves on; lower ones are duplicates.

    A higher one means that something before it is missing: its partition stops there.
    """
    intake = Intake()
    for partition, records in batch.items():
        for record in records:
            event = _event(record, intake)
            if event is None:
                continue
            held = versions.get(event.subject, 0)
            if event.streamversion <= held:
                intake.duplicates += 1
            elif event.streamversion == held + 1:
                versions[event.subject] = event.streamversion
                intake.events.append(event)
                intake.records.append(record)
            else:
                intake.next_offsets[partition] = record.offset
                intake.stopped[partition] = (
                    f"{event.subject} goes on with version {event.streamversion} at offset {record.offset}; {held} is held"
                )
                break
    return intake


def latest(batch: Batch) -> Intake:
    """Takes everything but deletions (null values), which say nothing to somebody who keeps the greater."""
    intake = Intake()
    for records in batch.values():
        for record in records:
            if record.value is not None and (event := _event(record, intake)) is not None:
                intake.events.append(event)
                intake.records.append(record)
    return intake


def _event(record: Record, intake: Intake) -> Event | None:
    try:
        event = _decode_event(record.value or b"")
        if (record.key or b"").decode() != event.subject:
            raise ValueError("the Kafka key is not the event's subject")
        if "\x00" in event.subject:
            raise ValueError("a subject with NUL")
    except ValueError as error:
        intake.poison.append((record, reason(error)))
        return None
    return event


def reason(error: BaseException) -> str:
    """An error in one line that fits a table."""
    return f"{type(error).__name__}: {error}".replace("\x00", "\\0")[:500]


class TooMuchPoison(Exception):  # noqa: N818 - a state of the topic
    """So many records can't be taken that it is the consumer that must be wrong: it stops rather than park them all."""


@dataclass
class Tolerance:
    """How much poison a consumer parks before it stops: in a row, and as a share of the last few thousand records."""

    in_a_row: int = 100
    share: float = 0.1
    _row: int = 0
    _seen: float = 0.0
    _parked: float = 0.0

    def allow(self, batch: Batch, parked: Collection[Record]) -> None:
        """Counts a batch of which some records are to be parked. Raises `TooMuchPoison` beyond a limit."""
        self._seen += sum(map(len, batch.values()))
        self._parked += len(parked)
        self._row = self._longest_row(batch, parked) if parked else 0
        if self._row > self.in_a_row:
            raise TooMuchPoison(f"more than {self.in_a_row} records in a row can't be taken")
        if self._parked > self.in_a_row and self._parked > self.share * self._seen:
            raise TooMuchPoison(f"more than {self.share:.0%} of the records can't be taken")
        if self._seen > 5000:
            self._seen, self._parked = self._seen / 2, self._parked / 2

    def _longest_row(self, batch: Batch, parked: Collection[Record]) -> int:
        """The longest row of parked records that is over the limit, else the one at the batch's end."""
        bad = {(record.topic, record.partition, record.offset) for record in parked}
        row = self._row
        for record in (record for records in batch.values() for record in records):
            row = row + 1 if (record.topic, record.partition, record.offset) in bad else 0
            if row > self.in_a_row:
                break
        return row
