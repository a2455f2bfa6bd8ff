"""Records into events. Pure. Any bytes whatsoever come out as something: an event, or a record to park and why.

What can't be read is known by what is left of its identity, so that it is passed like any other record of its log or stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from shared.events.requests import RequestEvent, RequestMetered, decode_request
from shared.kafka import Partition, Record

_BIGINT = 2**63
_BACKSLASH = 92
_NAME_MAX = 200  # of a stream: it is in an index, whose rows must be short

Fetched = Mapping[Partition, list[Record]]
"""Records as they were read, in the order of each partition."""


class Event(msgspec.Struct, frozen=True):
    """A record of every topic but `request-events`: the CloudEvents attributes that consumers use. `data` is not validated."""

    type: str
    time: datetime
    data: dict[str, Any]
    subject: str = ""
    epoch: int = 0
    streamversion: int = 0
    actor: str | None = None


class LogRecord(NamedTuple):
    """A record of a request log, by its identity. `event` is absent when the rest is unreadable: why is `error`."""

    record: Record
    log: str
    sequence: int
    previous: int
    event: RequestEvent | None
    error: str = ""


class LogRecords(NamedTuple):
    """Records of `logs`, as request events alone if that is what they are, else `found` and `nameless` one by one."""

    records: Sequence[Record]
    logs: set[str]
    events: list[RequestEvent] | None
    found: Sequence[LogRecord] = ()
    nameless: Sequence[tuple[Record, str]] = ()


class StreamRecord(NamedTuple):
    """A record of a stream. `event` is absent when it is unreadable (`error`); `version` 0 when not even that is known.

    `stream` is empty when the record is no stream's.
    """

    record: Record
    stream: str
    version: int
    event: Event | None
    error: str = ""


class _Identity(msgspec.Struct):
    subject: str
    streamversion: int


class _Owned(msgspec.Struct):
    owner_id: int = 0


class _Blamed(msgspec.Struct):
    actor: str | None = None
    data: _Owned | None = None


_decode_event = msgspec.json.Decoder(Event).decode
_decode_identity = msgspec.json.Decoder(_Identity).decode
_decode_blamed = msgspec.json.Decoder(_Blamed).decode


def read_logs(records: Sequence[Record]) -> LogRecords:
    """Records of request logs, in one go if nothing is odd about any of them."""
    events = _read_plainly(records)
    if events is not None and all(map(_is_log, logs := {event.source for event in events})):
        return LogRecords(records, logs, events)
    found, nameless = read_log_records(records)
    return LogRecords(records, {each.log for each in found}, None, found, nameless)


def _read_plainly(records: Sequence[Record]) -> list[RequestEvent] | None:
    """The request events, if all are whole and there are no others. What else it is, is told by `read_log_records`."""
    events = []
    try:
        for record in records:
            value = record.value or b""
            event = decode_request(value)
            data = event.data
            if not (data.previous < data.sequence and data.key_id and data.owner_id):
                return None
            if _BACKSLASH in value:
                # A client may well have sent what looks like a NUL: that must not cost the others the short way.
                _plausible(event, value)
            events.append(event)
    except Exception:  # no bytes may end the consumer
        return None
    return events


def read_log_records(records: Iterable[Record]) -> tuple[list[LogRecord], list[tuple[Record, str]]]:
    """The records of request logs, and those of which not even the identity can be read."""
    found: list[LogRecord] = []
    nameless: list[tuple[Record, str]] = []
    for record in records:
        try:
            event = decode_request(record.value or b"")
            data = event.data
            _plausible(event, record.value or b"")
            found.append(_checked(LogRecord(record, event.source, data.sequence, data.previous, event)))
        except Exception as error:  # no bytes may end the consumer
            try:
                found.append(_by_headers(record, reason(error)))
            except Exception:
                nameless.append((record, reason(error)))
    return found, nameless


def _by_headers(record: Record, error: str) -> LogRecord:
    headers = dict(record.headers)
    named = [(headers[name] or b"").decode() for name in ("source", "sequence", "previous")]
    return _checked(LogRecord(record, named[0], int(named[1]), int(named[2]), None, error))


def _plausible(event: RequestEvent, value: bytes) -> None:
    """`ValueError` for an event that no edge can have written, so that every service parks the same ones."""
    data = event.data
    if b"\\u0000" in value and any("\x00" in text for text in msgspec.structs.astuple(data) if isinstance(text, str)):
        raise ValueError("text with NUL")
    if event.type == RequestMetered.TYPE and not (data.key_id and data.owner_id):
        raise ValueError("not a metered request")


def _checked(found: LogRecord) -> LogRecord:
    """Only an identity that the marks can hold."""
    if -1 <= found.previous < found.sequence < _BIGINT and _is_log(found.log):
        return found
    raise ValueError("not the identity of a record of a request log")


def _is_log(name: str) -> bool:
    return len(name) <= 64 and name.isascii() and name.isprintable()


def read_stream_records(records: Iterable[Record]) -> list[StreamRecord]:
    """The records of streams, each with its version."""
    return [_read_stream_record(record) for record in records]


def _read_stream_record(record: Record) -> StreamRecord:
    stream = ""
    try:
        stream = _stream(record)
        event = _decode_event(record.value or b"")
        _checked_version(stream, event.subject, event.streamversion)
        return StreamRecord(record, stream, event.streamversion, event)
    except Exception as error:  # no bytes may end the consumer
        try:
            known = _decode_identity(record.value or b"")
            _checked_version(stream, known.subject, known.streamversion)
            return StreamRecord(record, stream, known.streamversion, None, reason(error))
        except Exception:
            return StreamRecord(record, stream, 0, None, reason(error))


def _checked_version(stream: str, subject: str, version: int) -> None:
    if not stream or subject != stream:
        raise ValueError("the Kafka key is not the event's subject")
    if not 0 < version < _BIGINT:
        raise ValueError("no version of a stream")


def read_event(record: Record) -> Event:
    """The event of a record of a compacted topic. Raises whatever is wrong with it."""
    event = _decode_event(record.value or b"")
    if _stream(record) != event.subject:
        raise ValueError("the Kafka key is not the event's subject")
    return event


def _stream(record: Record) -> str:
    stream = (record.key or b"").decode()
    if not 0 < len(stream) <= _NAME_MAX or "\x00" in stream:
        raise ValueError("the Kafka key is no name of a stream")
    return stream


def blamed(record: Record) -> str:
    """Who is behind a record, as far as it says: the owner that it is about, else who did it, else its stream."""
    try:
        said = _decode_blamed(record.value or b"")
    except Exception:  # whatever it is
        said = _Blamed()
    if said.data and said.data.owner_id:
        return f"owner-{said.data.owner_id}"
    return said.actor or (record.key or b"").decode(errors="replace")


def reason(error: BaseException) -> str:
    """An error in one line that fits a table."""
    return text(f"{type(error).__name__}: {error}").replace("\n", " ")[:500]


def text(anything: str) -> str:
    """What PostgreSQL can keep of a string: no NUL, and no half of a pair."""
    return anything.replace("\x00", "\\0").encode("utf-8", "replace").decode()


def portions(fetched: Fetched, count: int, size: int) -> Iterator[Fetched]:
    """The records in portions of at most `count` records and `size` bytes, or of one that is larger; each partition in order."""
    portion: dict[Partition, list[Record]] = {}
    records = room = 0
    for partition, each in fetched.items():
        for record in each:
            bytes_ = len(record.value or b"") + len(record.key or b"") + sum(len(v or b"") for _, v in record.headers)
            if portion and (records == count or room + bytes_ > size):
                yield portion
                portion = dict[Partition, list[Record]]()
                records = room = 0
            portion.setdefault(partition, []).append(record)
            records, room = records + 1, room + bytes_
    if portion:
        yield portion
