"""Request logs into `request-events`: everything, in order, byte for byte the same whenever it goes again, and deleted last."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path

import pytest

from services.edge.clock import boot_ns, wall_ns
from services.edge.limiter import Dump, Limiter
from services.edge.requestlog.format import partition_of
from services.edge.requestlog.reader import LogReader
from services.edge.requestlog.snapshot import restore
from services.edge.requestlog.writer import RequestLog
from shared.consumer.marks import START, Mark, close, take
from shared.events.requests import LogClosed, RequestEvent, decode_request
from shared.events.topics import REQUEST_EVENTS
from shared.kafka import Record
from tests.integration.edge_agent.world import EDGE, PARTITIONS, Platform, World, request
from tests.support.eventually import eventually
from tests.support.topics import adelete_topics, read_topic

pytestmark = pytest.mark.anyio
KEYS = 20


class Taken:
    """What a usage service has of all records that were sent, by its rule of marks; each seen again must be the same."""

    def __init__(self, sent: dict[int, list[Record]]) -> None:
        self.marks: dict[tuple[str, int], Mark] = defaultdict(lambda: START)
        self.events: list[RequestEvent] = []
        self.closed: dict[str, set[int]] = defaultdict(set)
        self.duplicates = 0
        bodies: dict[tuple[int, str], tuple[object, ...]] = {}
        for partition, records in sent.items():
            for record in records:
                event = decode_request(record.value or b"")
                body = (record.key, record.value, tuple(record.headers))
                assert bodies.setdefault((partition, event.id), body) == body
                self._take(partition, record, event)

    def _take(self, partition: int, record: Record, event: RequestEvent) -> None:
        name, data = (event.source, partition), event.data
        headers = {"source": event.source, "sequence": str(data.sequence), "previous": str(data.previous)}
        headers["content-type"] = "application/cloudevents+json"
        assert {header: (value or b"").decode() for header, value in record.headers} == headers
        if event.type == LogClosed.TYPE:
            self.closed[event.source].add(partition)
            self.marks[name] = close(self.marks[name], data.sequence, data.previous)
            return
        new, self.marks[name] = take(self.marks[name], data.sequence, data.previous)
        if new:
            assert record.key == (event.subject or "").encode() == b"key-%d" % data.key_id
            assert partition == partition_of(data.key_id, PARTITIONS)
            assert data.edge == EDGE
            self.events.append(event)
        else:
            self.duplicates += 1

    def ordinals(self, log: str) -> list[int]:
        return sorted(event.data.sequence for event in self.events if event.source == log)


async def taken(world: World) -> Taken:
    return Taken(await read_topic(world.kafka, REQUEST_EVENTS.name))


async def until_shipped(world: World, log: str, count: int, deadline: float = 30.0) -> Taken:
    """What there is when all of the log has come."""

    async def all_there() -> Taken | None:
        found = await taken(world)
        return found if found.ordinals(log) == list(range(count)) else None

    return await eventually(all_there, deadline, interval=0.2)


def write(log: RequestLog, first: int, count: int) -> int:
    for number in range(first, first + count):
        log.append(request(number, 1 + number % KEYS))
    log.flush()
    return first + count


def lasts(log: RequestLog) -> list[int]:
    """Each partition's last ordinal, from the log itself."""
    reader = LogReader(log.path)
    position = reader.start()
    while (batch := reader.read(position)).position != position:
        position = batch.position
    return list(position.lasts)


async def test_records_arrive_as_the_log_has_them_and_an_ended_log_is_closed(world: World) -> None:
    world.start()
    log = world.begin_log()
    write(log, 0, 100)
    found = await until_shipped(world, log.id, 100)
    assert not found.closed
    assert found.duplicates == 0
    event = next(event for event in found.events if event.data.sequence == 5)
    assert (event.id, event.type, event.data.request_id) == (f"{log.id}:5", "request.metered", f"{5:032x}")
    log.close()

    async def closed() -> bool:
        return (await taken(world)).closed[log.id] == set(range(PARTITIONS))

    await eventually(closed)
    found = await taken(world)
    assert not any(mark.gaps for mark in found.marks.values())
    assert [found.marks[log.id, number].last for number in range(PARTITIONS)] == [100] * PARTITIONS
    assert world.stop() == 0


async def test_a_killed_agent_loses_nothing_and_repeats_only_the_same_bytes(world: World) -> None:
    chance = random.Random(7)
    logs = [world.begin_log(segment_bytes=200_000) for _ in range(2)]
    written = [0, 0]
    world.start()

    async def flood() -> None:
        while True:
            for index, log in enumerate(logs):
                written[index] = write(log, written[index], chance.randint(1, 20))
            await asyncio.sleep(0.005)

    async def at_work() -> bool:
        return (await world.figures())["keyledger_edge_shipped_total"] > 0

    flooding = asyncio.ensure_future(flood())
    for _ in range(6):
        await eventually(at_work)
        # Whatever it is doing then.
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        world.kill()
        world.start()
    flooding.cancel()
    for log in logs:
        log.close()
    for log, count in zip(logs, written, strict=True):
        await until_shipped(world, log.id, count, 60.0)
    found = await taken(world)
    assert not any(mark.gaps for mark in found.marks.values())
    assert found.duplicates > 0

    async def closed() -> bool:
        known = (await taken(world)).closed
        return all(known[log.id] == set(range(PARTITIONS)) for log in logs)

    await eventually(closed)


async def test_a_new_agent_begins_at_the_first_record_that_is_not_stored(world: World, platform: Platform) -> None:
    log = world.begin_log()
    write(log, 0, 90)
    world.start()
    await until_shipped(world, log.id, 90)
    world.kill()
    ends = lasts(log)
    # Stored: all of partition 0, partition 1 but for a gap, partition 2 not at all.
    stored = [number for number in range(90) if partition_of(1 + number % KEYS, PARTITIONS) == 1]
    await platform.mark(log.id, 0, ends[0])
    await platform.mark(log.id, 1, ends[1], gaps=((stored[3], stored[5]),))
    before = await read_topic(world.kafka, REQUEST_EVENTS.name)
    write(log, 90, 10)
    world.start()
    await until_shipped(world, log.id, 100)
    after = await read_topic(world.kafka, REQUEST_EVENTS.name)
    again = {number: [_sequence(record) for record in after[number][len(before[number]) :]] for number in after}
    assert min(again[0]) >= 90
    assert again[1][0] == stored[4]
    assert again[2][0] == min(number for number in range(90) if partition_of(1 + number % KEYS, PARTITIONS) == 2)


async def test_a_mark_that_went_back_has_the_log_shipped_again(world: World, platform: Platform) -> None:
    log = world.begin_log()
    write(log, 0, 60)
    world.start()
    found = await until_shipped(world, log.id, 60)
    ends = lasts(log)
    for number in range(PARTITIONS):
        await platform.mark(log.id, number, ends[number])
    await platform.mark(log.id, 1, 3)

    async def again() -> bool:
        return (await taken(world)).duplicates > 0

    await eventually(again)
    assert "its mark went back" in world.output()
    assert found.duplicates == 0


async def test_what_kafka_acknowledged_and_lost_is_shipped_again(world: World, platform: Platform) -> None:
    """The usage service is beyond the records' offsets and does not have them."""
    log = world.begin_log()
    write(log, 0, 60)
    world.start()
    await until_shipped(world, log.id, 60)
    for number in range(PARTITIONS):
        await platform.mark(log.id, number, -1, next_offset=1000)

    async def again() -> bool:
        return (await taken(world)).duplicates >= 60

    await eventually(again)
    assert "lost acknowledged records" in world.output()


async def test_segments_go_after_the_marks_and_the_limits_stay(world: World, platform: Platform) -> None:
    world.settings = {"KEEP_SECONDS": "1"}
    log = world.begin_log(segment_bytes=10_000)
    for first in range(0, 300, 10):
        write(log, first, 10)
    counts = _limits(world.logs)
    world.start()
    await until_shipped(world, log.id, 300)
    segments = _segments(log)
    assert len(segments) > 3
    ends = lasts(log)
    await platform.mark(log.id, 0, ends[0])
    await platform.mark(log.id, 1, ends[1])
    # One partition is not stored beyond its tenth record: nothing after that goes.
    third = [number for number in range(300) if partition_of(1 + number % KEYS, PARTITIONS) == 2]
    await platform.mark(log.id, 2, third[9])
    kept = max(first for first in segments if first <= third[10])
    await eventually(lambda: _segments(log) == [first for first in segments if first >= kept])

    await platform.mark(log.id, 2, ends[2])
    await eventually(lambda: _segments(log) == segments[-1:])
    assert _limits(world.logs) == counts
    # What is written on is shipped with the same predecessors.
    write(log, 300, 30)
    found = await until_shipped(world, log.id, 330)
    assert not any(mark.gaps for mark in found.marks.values())

    log.close()

    async def closed() -> bool:
        return len((await taken(world)).closed[log.id]) == PARTITIONS

    await eventually(closed)
    for number in range(PARTITIONS):
        await platform.mark(log.id, number, 330, closed=True)
    await eventually(lambda: _segments(log) == [])
    # Its admissions count for a day.
    assert (log.path / "snapshot").exists()
    assert sum(len(windows[0]) for windows in _limits(world.logs).values()) > 0


async def test_a_log_without_records_is_told_to_nobody(world: World) -> None:
    world.start()
    empty = world.begin_log()
    empty.close()
    log = world.begin_log()
    write(log, 0, 3)
    found = await until_shipped(world, log.id, 3)
    assert world.stop(30) == 0
    assert empty.id not in found.closed


async def test_what_is_written_at_the_very_end_is_shipped_before_the_agent_ends(world: World) -> None:
    world.start()
    log = world.begin_log()
    written = write(log, 0, 10)
    await until_shipped(world, log.id, written)
    written = write(log, written, 500)
    log.close()
    assert world.stop() == 0
    found = await taken(world)
    assert found.ordinals(log.id) == list(range(written))
    assert found.closed[log.id] == set(range(PARTITIONS))


async def test_topics_that_vanish_are_made_anew_and_filled_again(world: World) -> None:
    world.start()
    log = world.begin_log()
    written = write(log, 0, 50)
    await until_shipped(world, log.id, written)
    await adelete_topics(world.kafka, [REQUEST_EVENTS.name])
    written = write(log, written, 50)
    await until_shipped(world, log.id, written, 90.0)


def _sequence(record: Record) -> int:
    return decode_request(record.value or b"").data.sequence


def _segments(log: RequestLog) -> list[int]:
    return LogReader(log.path).segments()


def _limits(directory: Path) -> Dump:
    limiter = Limiter()
    restore(directory, limiter, boot_ns(), wall_ns())
    return limiter.dump()
