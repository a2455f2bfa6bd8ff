"""The room of the request logs: a log ends before the disk is full, none begins until there is some, nothing is half written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.edge.requestlog import room as room_module
from services.edge.requestlog.reader import LogReader, logs
from services.edge.requestlog.room import Room
from services.edge.requestlog.snapshot import snapshot
from services.edge.requestlog.writer import LogFailed, RequestLog
from tests.support.disks import fill, free_bytes, small_disk
from tests.unit.edge.logs import begin, entries_of, everything, record, write

SIZE = 64 * 1024 * 1024
RESERVE = SIZE // 16


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", SIZE) as path:
        yield path


def until_it_ends(log: RequestLog, pause: float = 0) -> tuple[int, int]:
    """How many records it took, and how many of those it said that it did not. `pause`: so that the syncing thread has its turn."""
    number = 0
    while True:
        for _ in range(100):
            log.append(record(number))
            number += 1
        try:
            log.flush()
        except LogFailed as failed:
            return number, len(failed.unwritten)
        time.sleep(pause)


def write_and_close(log: RequestLog) -> None:
    log.append(record(1))
    log.close()


@pytest.mark.parametrize("interval", [0, 0.001])
def test_a_log_ends_in_order_while_there_is_room_for_others(disk: Path, interval: float) -> None:
    log = begin(disk / "logs", sync_interval=interval)
    fill(disk, 2 * RESERVE)
    appended, unwritten = until_it_ends(log, interval)
    assert unwritten == 0 and appended > 100
    assert free_bytes(disk) > 0
    entries, position = everything(LogReader(log.path))
    assert entries == entries_of([record(number) for number in range(appended)])
    assert (log.path / f"{0:020d}.log").stat().st_size == position.offset, "no half of a record"


def test_none_begins_until_there_is_room_and_the_attempts_leave_nothing(disk: Path) -> None:
    log = begin(disk / "logs")
    write(log, record(0))
    ballast = fill(disk, RESERVE // 2)
    free = free_bytes(disk)
    for _ in range(100):
        with pytest.raises(LogFailed, match="the disk is full"):
            begin(disk / "logs")
    assert free_bytes(disk) == free and len(logs(disk / "logs")) == 1
    write_and_close(log)
    assert [entry.ordinal for entry in everything(LogReader(log.path))[0]] == [0, 1], "what is under way is counted"
    ballast.unlink()
    begin(disk / "logs").close()


def test_a_budget_ends_a_log_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "_MEASURE_SECONDS", 0.0)
    log = begin(tmp_path, sync_interval=0, segment_bytes=20_000, budget=200_000)
    appended, unwritten = until_it_ends(log)
    assert unwritten == 0 and appended > 100
    with pytest.raises(LogFailed, match="used up their budget of 200000 bytes"):
        begin(tmp_path, budget=200_000)
    taken = Room(tmp_path, 200_000).taken()
    assert taken.limit == 200_000 and 1.0 < taken.share < 1.5
    reader = LogReader(log.path)
    snapshot(reader, everything(reader)[1])
    for first in reader.segments()[:-1]:
        reader.delete_segment(first)
    begin(tmp_path, budget=200_000).close()


def test_a_snapshot_is_replaced_and_segments_go_on_a_disk_without_a_byte(disk: Path) -> None:
    log = begin(disk / "logs", segment_bytes=2000)
    reader = LogReader(log.path)
    snapshot(reader, reader.start())
    for number in range(50):
        write(log, record(number))
    log.close()
    fill(disk)
    assert free_bytes(disk) == 0
    snapshot(reader, everything(reader)[1])
    for first in reader.segments():
        reader.delete_segment(first)
    assert reader.segments() == [] and free_bytes(disk) > 0
    found = reader.snapshot()
    assert found is not None and len(found.counts) == 7


def test_the_room_is_what_there_is_but_for_the_reserve(disk: Path) -> None:
    (disk / "logs").mkdir()
    room = Room(disk / "logs")
    assert room.taken().share == 0.0
    fill(disk, RESERVE - 1)
    assert room.taken().share == 1.0 and room.lacking()
