"""A tail: one request log as the agent follows it, read from its files, shipped to Kafka, stored by the usage service, deleted.

What is shipped is derived from the log alone, so a record that is shipped again has the same bytes. `wanted` has for
each partition the first ordinal that is still to be shipped; reading begins anew at the first uncovered record whenever
there is doubt, and the usage service drops what it has (its marks).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from services.edge.agent import coverage
from services.edge.agent.coverage import UNKNOWN, Mark, Run
from services.edge.clock import MILLISECOND
from services.edge.requestlog.format import segment_name
from services.edge.requestlog.reader import Entry, LogReader, Position
from shared.events import CONTENT_TYPE, CloudEvent
from shared.events.requests import LogClosed, Request, RequestEvent, RequestMetered, encode_request

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_READ_BYTES = 256 * 1024
_MAX_RUNS = 1000
_GRACE = 5.0
_MAX_DOUBLINGS = 6


class Item(msgspec.Struct, frozen=True, gc=False):
    """A record on its way to `request-events`. One of an earlier `generation` of its tail is stale."""

    tail: Tail
    generation: int
    partition: int
    ordinal: int
    timestamp_ms: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass
class Segment:
    """A segment that was read to its end: the partitions' last ordinals there, what follows, since when the marks cover it,
    and since when Kafka has all of it, if only by its own word."""

    lasts: tuple[int, ...]
    after: Position
    covered_since: float | None = None
    acknowledged_since: float | None = None


class Tail:
    """The state of one log. Raises `LogUnreadableError` when made from a log of which no header can be read."""

    def __init__(self, reader: LogReader) -> None:
        self.reader = reader
        self.id = reader.id
        self.edge = reader.header.edge_id
        self.partitions = reader.header.partitions
        self.position = reader.start()
        self.unacknowledged = 0
        self.generation = 0
        self.segments: dict[int, Segment] = {}
        self._source = ("source", self.id.encode())
        self._marks = [UNKNOWN] * self.partitions
        self._wanted = [0] * self.partitions
        self._runs: list[list[Run]] = [[] for _ in range(self.partitions)]
        self._acknowledged = [-1] * self.partitions
        self._again = False
        self._at_end = False
        self._closing = False
        self._resent = 0

    @property
    def done(self) -> bool:
        """Whether all there will ever be of the log is acknowledged, its closing record too."""
        return self._at_end and not self.unacknowledged and (self._closing or not self._to_close())

    @property
    def closed(self) -> bool:
        """Whether the usage service has all of the log, in every partition."""
        return all(mark.closed for mark in self._marks)

    @property
    def damaged(self) -> int:
        """How many damaged places were found in what was read."""
        return self.position.damaged

    @property
    def unread(self) -> int:
        """Bytes of the log that were not read yet; 0 when the disk won't tell."""
        at = self.position
        with suppress(OSError):
            sizes = {first: self._size(first) for first in self.reader.segments() if first >= at.segment}
            return max(0, sum(sizes.values()) - at.offset)
        return 0

    def read(self) -> list[Item]:
        """The next piece of the log that is to be shipped; after the last record of an ended log, the closing ones.

        Raises `OSError`, and has then done nothing: the same piece may be asked for again.
        """
        if self._again:
            self.position = self.reader.start()
            self._again = False
        if self._at_end:
            return self._close() if not self.unacknowledged and not self._closing and self._to_close() else []
        # Asked first: what a process wrote before it let go of the log is read after.
        over = self.reader.ended()
        entries, position = self.reader.read(self.position, _READ_BYTES)
        at_end = over and not entries and position == self.position
        if at_end or position.segment != self.position.segment:
            self._passed(None if at_end else position)
        self._at_end = at_end
        self.position = position
        return [self._item(entry) for entry in entries if self._wants(entry)]

    def acknowledged(self, partition: int, count: int, last: int, end: int) -> None:
        """Kafka has the next `count` records of the partition, the last with this ordinal, up to offset `end`."""
        self.unacknowledged -= count
        self._acknowledged[partition] = last
        self._runs[partition].append(Run(last, end))
        self._runs[partition] = coverage.thinned(self._runs[partition], _MAX_RUNS)

    def take(self, partition: int, mark: Mark) -> bool:
        """What the usage service tells of the log. True: it has lost some of it, and the log is shipped again."""
        before, self._marks[partition] = self._marks[partition], mark
        if not coverage.went_back(before, mark):
            return False
        self.ship_again()
        return True

    def believe(self, known: Mapping[int, Mark]) -> None:
        """Takes what is known of a log that is read for the first time, before anything is shipped."""
        for partition, mark in known.items():
            if partition < self.partitions:
                self._marks[partition] = mark
        self._want_uncovered()

    def ship_again(self, *, forget: bool = False) -> None:
        """Begins again at the first uncovered record; `forget`: in another cluster, what the marks said is not known."""
        if forget:
            self._marks = [UNKNOWN] * self.partitions
        self._again = True
        self.generation += 1
        self.unacknowledged = 0
        self.segments.clear()
        self._runs = [[] for _ in range(self.partitions)]
        self._acknowledged = [-1] * self.partitions
        self._at_end = self._closing = False
        self._want_uncovered()

    def check_lost(self, next_offsets: dict[int, int], now: float) -> bool:
        """Ships the log again if the broker lost acknowledged records of it, each time after a longer wait."""
        grace = _GRACE * 2 ** min(self._resent, _MAX_DOUBLINGS)
        for partition, mark in enumerate(self._marks):
            runs = coverage.still_open(self._runs[partition], mark, next_offsets.get(partition, 0), now)
            self._runs[partition] = runs
            if coverage.lost(runs, now, grace):
                self._resent += 1
                self.ship_again()
                return True
        return False

    def deletable(self, now: float, keep: float) -> list[int]:
        """The segments, oldest first, that the marks have covered for `keep` seconds."""
        for segment in self.segments.values():
            covered = coverage.covered(segment.lasts, self._marks)
            segment.covered_since = (segment.covered_since or now) if covered else None
        firsts = self._removable()
        times = [self.segments[first].covered_since for first in firsts]
        return firsts[: coverage.deletable(times, now, keep)]

    def expendable(self, now: float, age: float) -> list[int]:
        """The segments, oldest first, of which Kafka has acknowledged all `age` seconds ago, stored or not."""
        for segment in self.segments.values():
            there = zip(segment.lasts, self._acknowledged, self._marks, strict=True)
            acknowledged = all(last <= max(sent, mark.floor) for last, sent, mark in there)
            segment.acknowledged_since = (segment.acknowledged_since or now) if acknowledged else None
        firsts = self._removable()
        times = [self.segments[first].acknowledged_since for first in firsts]
        return firsts[: coverage.deletable(times, now, age)]

    def _removable(self) -> list[int]:
        # The last segment of an ended log stays until the closing record is stored: without it there is none to close.
        firsts = sorted(self.segments)
        return firsts[:-1] if self._at_end and self._to_close() else firsts

    def forget(self, firsts: list[int]) -> None:
        """These segments are deleted."""
        for first in firsts:
            self.segments.pop(first, None)

    def _size(self, first: int) -> int:
        with suppress(FileNotFoundError):
            return (self.reader.path / segment_name(first)).stat().st_size
        return 0

    def _want_uncovered(self) -> None:
        self._wanted = [mark.floor + 1 for mark in self._marks]

    def _wants(self, entry: Entry) -> bool:
        return entry.ordinal >= self._wanted[entry.partition]

    def _passed(self, position: Position | None) -> None:
        """All segments before the position, or at the log's end all that are left, are read."""
        lasts, after = self.position.lasts, position or self.position
        for first in self.reader.segments():
            if (position is None or first < position.segment) and first not in self.segments:
                self.segments[first] = Segment(lasts, after)

    def _item(self, entry: Entry) -> Item:
        ordinal, partition, previous, record = entry
        key = f"key-{record.key_id}"
        data = Request(
            ordinal,
            previous,
            self.edge,
            record.key_id,
            record.key_version,
            record.owner_id,
            record.endpoint,
            record.route,
            record.method,
            record.status_code,
            record.response_time,
            record.decision,
            record.via,
            record.request_id,
            record.correlation_id,
            record.client_address,
        )
        time = _EPOCH + timedelta(microseconds=record.time_ns // 1000)
        event = RequestEvent(f"{self.id}:{ordinal}", self.id, RequestMetered.TYPE, time, data, key)
        self._wanted[partition] = ordinal + 1
        self.unacknowledged += 1
        return Item(
            self,
            self.generation,
            partition,
            ordinal,
            record.time_ns // MILLISECOND,
            key.encode(),
            encode_request(event),
            self._headers(ordinal, previous),
        )

    def _headers(self, ordinal: int, previous: int) -> list[tuple[str, bytes]]:
        return [self._source, ("sequence", b"%d" % ordinal), ("previous", b"%d" % previous), CONTENT_TYPE]

    def _to_close(self) -> bool:
        """A log without records is known to nobody. One without segments is shipped, and was closed then."""
        return self._end() > 0 and bool(self.segments) and not self.closed

    def _end(self) -> int:
        """The ordinal of the closing record: after all that there is, and not before what is stored and damaged since."""
        return max(max(self.position.lasts) + 1, *(mark.last for mark in self._marks))

    def _close(self) -> list[Item]:
        path = self.reader.path / segment_name(max(self.segments))
        time_ns = path.stat().st_mtime_ns
        self._closing = True
        self.unacknowledged = self.partitions
        return [self._closing_item(partition, time_ns) for partition in range(self.partitions)]

    def _closing_item(self, partition: int, time_ns: int) -> Item:
        sequence, previous = self._end(), self.position.lasts[partition]
        event = CloudEvent[LogClosed](
            id=f"{self.id}:closed:{partition}",
            source=self.id,
            type=LogClosed.TYPE,
            time=_EPOCH + timedelta(microseconds=time_ns // 1000),
            schemaversion=LogClosed.SCHEMA_VERSION,
            data=LogClosed(sequence=sequence, previous=previous, edge=self.edge),
        )
        return Item(
            self,
            self.generation,
            partition,
            sequence,
            time_ns // MILLISECOND,
            self.id.encode(),
            event.encode(),
            self._headers(sequence, previous),
        )
