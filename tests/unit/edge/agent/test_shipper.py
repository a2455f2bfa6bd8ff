"""What is shipped, shipped again and deleted: the rules, and a log with its agent, a broker and a usage service as models.

The model of the usage service is the real rule of its marks (`shared.consumer.marks`).
"""

from __future__ import annotations

import asyncio
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from typing_extensions import override

from services.edge.agent import coverage
from services.edge.agent.coverage import EVERYTHING, Mark, Run
from services.edge.agent.lane import Lane
from services.edge.agent.shipper import Shipper
from services.edge.agent.tail import Tail
from services.edge.requestlog.format import partition_of
from services.edge.requestlog.reader import LogReader
from services.edge.requestlog.snapshot import snapshot
from services.edge.requestlog.writer import RequestLog
from shared.consumer import marks as taking
from shared.events.requests import LogClosed, decode_request
from shared.settings import Base
from tests.support.eventually import eventually
from tests.unit.edge.agent.models import SmallBatch, UsagePartition
from tests.unit.edge.logs import begin, record, write

PARTITIONS = 3
KEYS = 8
FOREIGN = b"another log's record"


@st.composite
def partition_logs(draw: st.DrawFn) -> list[tuple[int, int]]:
    """A partition's records of one log, as (ordinal, previous)."""
    ordinals = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=20)))
    return list(zip(ordinals, [-1, *ordinals], strict=False))


@given(partition_logs(), st.data())
def test_the_floor_is_where_the_first_missing_record_begins(
    records: list[tuple[int, int]], data: st.DataObject
) -> None:
    arrived = data.draw(st.lists(st.sampled_from(records)))
    held, stored = taking.START, set()
    for ordinal, previous in arrived:
        new, held = taking.take(held, ordinal, previous)
        if new:
            stored.add(ordinal)
    mark = Mark(held.last, held.gaps)
    for ordinal, _ in records:
        if ordinal <= mark.floor:
            assert ordinal in stored
    missing = [ordinal for ordinal, _ in records if ordinal not in stored]
    complete = [ordinal for ordinal, _ in records if not missing or ordinal < missing[0]]
    assert all(ordinal <= mark.floor for ordinal in complete)


def test_a_closed_mark_covers_everything() -> None:
    assert Mark(3, ((1, 2),), closed=True).floor == EVERYTHING
    assert coverage.covered([10, -1], [Mark(closed=True), Mark()])
    assert not coverage.covered([10, 0], [Mark(closed=True), Mark()])


RUNS = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 99)), max_size=10).map(
    lambda pairs: [
        Run(last, end) for last, end in zip(sorted(p[0] for p in pairs), sorted(p[1] for p in pairs), strict=True)
    ]
)


@given(RUNS, st.integers(-1, 99), st.integers(0, 99))
def test_what_the_service_is_beyond_and_has_not_is_lost_after_the_grace(
    runs: list[Run], floor: int, next_offset: int
) -> None:
    mark = Mark(floor)
    seen = coverage.still_open(runs, mark, next_offset, now=100.0)
    missing = any(run.last > floor and run.end <= next_offset for run in runs)
    assert not coverage.lost(seen, now=104.9, grace=5.0)
    assert coverage.lost(coverage.still_open(seen, mark, next_offset, now=105.0), now=105.0, grace=5.0) == missing
    assert not coverage.still_open(seen, Mark(99), next_offset, now=106.0)


@given(RUNS, st.integers(1, 5))
def test_thinning_keeps_the_last_run_and_forgets_no_record(runs: list[Run], limit: int) -> None:
    thin = coverage.thinned(runs, limit)
    assert len(thin) <= limit
    assert set(thin) <= set(runs)
    assert thin[-1:] == runs[-1:]


@given(st.lists(st.none() | st.floats(0, 100)), st.floats(0, 50))
def test_segments_go_in_order_and_only_after_their_time(times: list[float | None], keep: float) -> None:
    count = coverage.deletable(times, 100.0, keep)
    assert all(since is not None and 100.0 - since >= keep for since in times[:count])
    if count < len(times):
        blocking = times[count]
        assert blocking is None or 100.0 - blocking < keep


class Shipping(RuleBasedStateMachine):
    """A serving process, an agent that dies, a broker that loses its tail, and a usage service that goes back in time."""

    @initialize(segment_bytes=st.integers(400, 4000))
    def begin(self, segment_bytes: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.log = RequestLog.open(
            Path(self.directory.name), edge_id="e", partitions=PARTITIONS, segment_bytes=segment_bytes
        )
        self.path = self.log.path
        self.written = 0
        self.open = True
        self.kafka: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        self.usage = [UsagePartition() for _ in range(PARTITIONS)]
        self.first_sent: dict[str, bytes] = {}
        self.told: dict[int, Mark] = {}
        self.now = 0.0
        self.deleted = False
        self.start_agent()

    @override
    def teardown(self) -> None:
        if hasattr(self, "directory"):
            if self.open:
                self.log.close()
            self.directory.cleanup()

    def start_agent(self) -> None:
        self.lanes = [Lane(number) for number in range(PARTITIONS)]
        self.tail = Tail(LogReader(self.path))
        self.tail.believe(self.told)

    @precondition(lambda self: self.open)
    @rule(keys=st.lists(st.integers(1, KEYS), min_size=1, max_size=12), shipped=st.booleans())
    def write(self, keys: list[int], shipped: bool) -> None:
        for number, key in enumerate(keys, self.written):
            self.log.append(record(number, key=key))
        self.log.flush()
        self.written += len(keys)
        if shipped:
            self.read()
            for number in range(PARTITIONS):
                self.send(number, 100, answered=True)

    @precondition(lambda self: self.open)
    @rule()
    def end_process(self) -> None:
        self.log.close()
        self.open = False

    @rule()
    def read(self) -> None:
        for item in self.tail.read():
            self.lanes[item.partition].put(item)

    @rule(number=st.integers(0, PARTITIONS - 1), capacity=st.integers(1, 9), answered=st.booleans())
    def send(self, number: int, capacity: int, answered: bool) -> None:
        """Kafka takes a batch; the acknowledgement may not come, and then the same records go again."""
        lane, batch = self.lanes[number], SmallBatch(capacity)
        if not lane.load(batch):  # type: ignore[bad-argument-type]
            return
        for value in batch.records:
            name = decode_request(value).id
            assert self.first_sent.setdefault(name, value) == value
        offset = len(self.kafka[number])
        self.kafka[number] += batch.records
        if answered:
            shorter = offset < lane.end
            lane.land(offset)
            if shorter:
                self.tail.ship_again()
        else:
            lane.restore()

    @rule(number=st.integers(0, PARTITIONS - 1))
    def fail(self, number: int) -> None:
        lane = self.lanes[number]
        lane.load(SmallBatch(3))  # type: ignore[bad-argument-type]
        lane.restore()

    @rule()
    def kill_agent(self) -> None:
        self.start_agent()

    @rule(count=st.integers(1, 5), others=st.integers(0, 5))
    def broker_loses_its_tails(self, count: int, others: int) -> None:
        """Another edge may write where the lost records were before anybody looks."""
        for kafka, usage in zip(self.kafka, self.usage, strict=True):
            del kafka[max(0, len(kafka) - count) :]
            usage.next_offset = min(usage.next_offset, len(kafka))
            kafka.extend([FOREIGN] * others)

    @rule(number=st.integers(0, PARTITIONS - 1), count=st.integers(1, 30))
    def consume(self, number: int, count: int) -> None:
        usage = self.usage[number]
        for value in self.kafka[number][usage.next_offset :][:count]:
            usage.next_offset += 1
            if value != FOREIGN:
                usage.consume(value)

    @rule(number=st.integers(0, PARTITIONS - 1))
    def tell_marks(self, number: int) -> None:
        done = all(usage.closed and not usage.mark.gaps for usage in self.usage)
        mark = Mark(self.usage[number].mark.last, self.usage[number].mark.gaps, closed=done)
        self.told[number] = mark
        self.tail.take(number, mark)

    @rule()
    def back_up_usage(self) -> None:
        self.backup = deepcopy(self.usage)

    @precondition(lambda self: hasattr(self, "backup") and not self.deleted)
    @rule()
    def restore_usage(self) -> None:
        """An older database that does not even read the topic again: the marks go back, and that must be enough."""
        for usage, old, kafka in zip(self.usage, self.backup, self.kafka, strict=True):
            usage.mark, usage.closed, usage.taken = old.mark, old.closed, list(old.taken)
            usage.next_offset = len(kafka)
        for number in range(PARTITIONS):
            self.tell_marks(number)

    @rule()
    def look_for_losses(self) -> None:
        self.now += 1000.0
        if any(lane.end > len(kafka) for lane, kafka in zip(self.lanes, self.kafka, strict=True)):
            for lane, kafka in zip(self.lanes, self.kafka, strict=True):
                lane.end = min(lane.end, len(kafka))
            self.tail.ship_again()
        offsets = {number: usage.next_offset for number, usage in enumerate(self.usage)}
        self.tail.check_lost(offsets, self.now)

    @rule(keep=st.sampled_from([0.0, 500.0]))
    def sweep(self, keep: float) -> None:
        self.now += 1.0
        firsts = self.tail.deletable(self.now, keep)
        if not firsts:
            return
        highest = self.tail.segments[firsts[-1]].lasts
        for number, last in enumerate(highest):
            assert set(range(last + 1)) & self.ordinals(number) <= set(self.usage[number].taken)
        snapshot(self.tail.reader, self.tail.segments[firsts[-1]].after)
        for first in firsts:
            self.tail.reader.delete_segment(first)
        self.tail.forget(firsts)
        self.deleted = True

    def ordinals(self, number: int) -> set[int]:
        sent = (decode_request(value) for value in self.first_sent.values())
        return {e.data.sequence for e in sent if e.type != LogClosed.TYPE and self.placed(e.data.key_id) == number}

    def placed(self, key_id: int) -> int:
        return partition_of(key_id, PARTITIONS)

    @invariant()
    def nothing_is_taken_twice(self) -> None:
        for usage in getattr(self, "usage", ()):
            assert len(usage.taken) == len(set(usage.taken))

    @invariant()
    def bytes_are_those_of_what_waits(self) -> None:
        for lane in getattr(self, "lanes", ()):
            assert lane.bytes == sum(len(item.value) for item in (*lane._waiting, *lane._flying))

    @rule()
    def settle(self) -> None:
        """Left alone for a while, everything arrives: exactly what was written, closed if its process has ended."""
        for _ in range(30):
            for _ in range(self.written + 2):
                self.read()
                for number in range(PARTITIONS):
                    self.send(number, 100, answered=True)
                if self.tail.unread == 0 and not self.tail.unacknowledged:
                    break
            for number in range(PARTITIONS):
                self.consume(number, 10_000)
                self.tell_marks(number)
            for number in range(PARTITIONS):
                self.tell_marks(number)
            self.look_for_losses()
            self.look_for_losses()
        taken = sorted(ordinal for usage in self.usage for ordinal in usage.taken)
        assert taken == list(range(self.written))
        if not self.open:
            assert self.tail.done
            assert self.tail.closed == (self.written > 0)


def test_what_kafka_acknowledged_long_ago_may_go_though_it_is_not_stored(tmp_path: Path) -> None:
    log = RequestLog.open(tmp_path, edge_id="e", partitions=PARTITIONS, segment_bytes=1000)
    for number in range(40):
        log.append(record(number))
        log.flush()
    tail, lanes = Tail(LogReader(log.path)), [Lane(number) for number in range(PARTITIONS)]
    segments = tail.reader.segments()
    while tail.unread:
        for item in tail.read():
            lanes[item.partition].put(item)
    assert tail.expendable(1.0, 600.0) == []
    for lane in lanes[1:]:
        lane.load(SmallBatch(100))  # type: ignore[bad-argument-type]
        lane.land(0)
    assert tail.expendable(2.0, 0.0) == [], "one partition has none of them"
    lanes[0].load(SmallBatch(100))  # type: ignore[bad-argument-type]
    lanes[0].land(0)
    assert tail.expendable(10.0, 600.0) == []
    assert tail.expendable(609.0, 600.0) == []
    assert tail.expendable(610.0, 600.0) == segments[:-1], "the last is written to"
    assert tail.deletable(610.0, 0.0) == []
    tail.ship_again()
    assert tail.expendable(2000.0, 0.0) == []
    log.close()


@pytest.mark.anyio
async def test_so_much_is_read_as_memory_may_hold_however_large_records_are(tmp_path: Path) -> None:
    log = begin(tmp_path)
    for number in range(0, 3000, 50):
        write(log, *(record(at, endpoint="/" + "x" * 8000) for at in range(number, number + 50)))
    shipper = Shipper(Base(kafka="127.0.0.1:1", partitions=PARTITIONS), tmp_path)
    shipper.tell({}, {})
    reading = asyncio.ensure_future(shipper._read())
    seen = [0]

    def at_rest() -> bool:
        seen.append(sum(lane.bytes for lane in shipper.lanes))
        return seen[-1] == seen[-2] > 0

    await eventually(at_rest, 30)
    assert 12_000_000 < seen[-1] < 14_000_000
    reading.cancel()
    log.close()


Shipping.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestShipping = Shipping.TestCase
