"""A power loss, or rot, in a log that is being shipped: every record that is still whole is stored once, the log is closed,
nobody waits for what is lost, and segments go.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.agent.coverage import Mark
from services.edge.agent.lane import Lane
from services.edge.agent.tail import Tail
from services.edge.requestlog.format import RECORD, frames, segment_name
from services.edge.requestlog.reader import LogReader
from services.edge.requestlog.snapshot import snapshot
from shared.events.requests import LogClosed, decode_request
from tests.unit.edge.agent.models import SmallBatch, UsagePartition
from tests.unit.edge.logs import PARTITIONS, begin, record

KEYS = 8
ROUNDS = 6


@dataclass
class World:
    """Everything around one log, of an agent that is started anew now and then."""

    path: Path
    usage: list[UsagePartition] = field(default_factory=lambda: [UsagePartition() for _ in range(PARTITIONS)])
    kafka: list[list[bytes]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    sent: int = 0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.start_agent()

    def start_agent(self) -> None:
        self.lanes = [Lane(number) for number in range(PARTITIONS)]
        self.tail = Tail(LogReader(self.path))
        self.tail.believe(dict(enumerate(self.marks())))

    def marks(self) -> list[Mark]:
        done = all(usage.closed and not usage.mark.gaps for usage in self.usage)
        return [Mark(usage.mark.last, usage.mark.gaps, closed=done) for usage in self.usage]

    def ship(self) -> None:
        """All that there is, acknowledged."""
        idle = 0
        while idle < 2:
            before, items = self.tail.position, self.tail.read()
            for item in items:
                self.lanes[item.partition].put(item)
            for lane in self.lanes:
                batch = SmallBatch(1000)
                if lane.load(batch):  # type: ignore[bad-argument-type]
                    offset = len(self.kafka[lane.number])
                    self.kafka[lane.number] += batch.records
                    self.sent += lane.land(offset)
            idle = 0 if items or before != self.tail.position else idle + 1

    def lose(self, counts: list[int]) -> None:
        """The broker was on the same machine."""
        for kafka, usage, count in zip(self.kafka, self.usage, counts, strict=True):
            del kafka[max(usage.next_offset, len(kafka) - count) :]

    def lose_batch(self, number: int, first: int, count: int) -> None:
        """A fresh producer's first batch may be lost while its second is accepted."""
        kafka, at = self.kafka[number], max(self.usage[number].next_offset, first)
        self.kafka[number] = kafka[:at] + kafka[at + count :]

    def consume(self, counts: list[int]) -> None:
        for kafka, usage, count in zip(self.kafka, self.usage, counts, strict=True):
            for value in kafka[usage.next_offset :][:count]:
                usage.next_offset += 1
                usage.consume(value)

    def clear(self) -> None:
        """Segments that are stored go."""
        self.now += 1000.0
        self.tail.check_lost({number: usage.next_offset for number, usage in enumerate(self.usage)}, self.now)
        firsts = self.tail.deletable(self.now, 0.0)
        if firsts:
            snapshot(self.tail.reader, self.tail.segments[firsts[-1]].after)
            for first in firsts:
                self.tail.reader.delete_segment(first)
            self.tail.forget(firsts)

    def settle(self, *, restarts: bool = False) -> None:
        for _ in range(ROUNDS):
            if restarts:
                self.start_agent()
            self.ship()
            self.consume([10_000] * PARTITIONS)
            for number, mark in enumerate(self.marks()):
                self.tail.take(number, mark)
            self.clear()


@st.composite
def damages(draw: st.DrawFn, sizes: list[int]) -> list[tuple[int, str, int, int]]:
    """What became of some segments: (which, what, from where, how many bytes)."""
    found = []
    for index in draw(st.sets(st.integers(0, len(sizes) - 1), max_size=3)):
        what = draw(st.sampled_from(["cut", "zeroed", "flipped", "empty", "gone", "headless"]))
        at = draw(st.integers(0, sizes[index] - 1))
        found.append((index, what, at, draw(st.integers(1, 400))))
    return found


def damaged(data: bytes, what: str, at: int, count: int) -> bytes | None:
    """The segment's bytes afterwards; None: the file is not there."""
    if what == "cut":
        return data[:at]
    if what == "zeroed":
        return data[:at] + b"\0" * (len(data) - at)
    if what == "flipped":
        piece = bytes(byte ^ 0x5A for byte in data[at : at + count])
        return data[:at] + piece + data[at + len(piece) :]
    if what == "headless":
        return b"\0" * 120 + data[120:]
    return b"" if what == "empty" else None


def whole(path: Path) -> set[int]:
    return {
        f.ordinal for each in path.glob("*.log") for f in frames(each.read_bytes()) if f.kind == RECORD and f.content
    }


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_whole_is_stored_once_and_the_log_is_closed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        log = begin(Path(directory), segment_bytes=data.draw(st.integers(500, 3000)))
        keys = data.draw(st.lists(st.integers(1, KEYS), min_size=1, max_size=60))
        world = World(log.path)
        shipped = data.draw(st.integers(0, len(keys)))
        for number, key in enumerate(keys):
            log.append(record(number, key=key))
            log.flush()
            if number == shipped:
                world.ship()
        log.close()
        counts = st.lists(st.integers(0, 30), min_size=PARTITIONS, max_size=PARTITIONS)
        world.consume(data.draw(counts))
        world.lose_batch(*data.draw(st.tuples(st.integers(0, PARTITIONS - 1), st.integers(0, 9), st.integers(0, 9))))
        world.consume(data.draw(counts))
        world.lose(data.draw(counts))
        segments = [log.path / segment_name(first) for first in LogReader(log.path).segments()]
        for index, what, at, count in data.draw(damages([path.stat().st_size for path in segments])):
            left = damaged(segments[index].read_bytes(), what, at, count)
            if left is None:
                segments[index].unlink()
            else:
                segments[index].write_bytes(left)
        there = whole(log.path)
        before = {ordinal for usage in world.usage for ordinal in usage.taken}
        in_kafka = {
            event.data.sequence
            for kafka in world.kafka
            for event in map(decode_request, kafka)
            if event.type != LogClosed.TYPE
        }
        world.start_agent()
        world.settle(restarts=data.draw(st.booleans()))
        taken = [ordinal for usage in world.usage for ordinal in usage.taken]
        assert len(taken) == len(set(taken))
        assert set(taken) == there | before | in_kafka
        assert [usage.mark.gaps for usage in world.usage] == [()] * PARTITIONS, "nobody waits for what is lost"
        if taken and LogReader(log.path).segments():
            assert world.tail.closed
        if world.tail.closed:
            assert LogReader(log.path).segments() == []
        assert world.sent <= 3 * (len(keys) + PARTITIONS) * (ROUNDS if not world.tail.closed else 3)


def test_a_log_of_which_nothing_is_left_is_closed_all_the_same(tmp_path: Path) -> None:
    log = begin(tmp_path)
    for number in range(2):
        log.append(record(number, key=1))
    log.close()
    world = World(log.path)
    world.ship()
    (partition,) = [number for number, kafka in enumerate(world.kafka) if len(kafka) > 1]
    world.lose_batch(partition, 0, 1)
    world.consume([1] * PARTITIONS)
    world.kafka[partition] = world.kafka[partition][:1]
    (log.path / segment_name(0)).write_bytes(b"")
    world.start_agent()
    world.settle()
    assert world.usage[partition].taken == [1]
    assert world.usage[partition].mark.gaps == () and world.tail.closed


def test_a_gap_is_closed_when_what_it_waits_for_is_damaged(tmp_path: Path) -> None:
    """Kafka had lost records whose successor it took; before they could go again, the disk lost them too."""
    log = begin(tmp_path)
    for number in range(4):
        log.append(record(number, key=1))
    log.close()
    world = World(log.path)
    world.ship()
    (partition,) = [number for number, kafka in enumerate(world.kafka) if len(kafka) > 1]
    world.lose_batch(partition, 1, 2)
    world.consume([2] * PARTITIONS)
    assert world.usage[partition].mark.gaps == ((0, 2),)
    path = log.path / segment_name(0)
    data = path.read_bytes()
    ends = [frame.end for frame in frames(data)]
    path.write_bytes(data[: ends[1]] + b"\0" * (ends[3] - ends[1]) + data[ends[3] :])
    world.start_agent()
    world.settle()
    assert sorted(world.usage[partition].taken) == [0, 3]
    assert world.usage[partition].mark.gaps == ()
    assert world.tail.closed
