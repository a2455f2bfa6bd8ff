"""Snapshots of request logs as they grow: a start folds what came after them, and no log waits for another."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from services.edge.agent.snapshots import Snapshots
from services.edge.clock import boot_ns, wall_ns
from services.edge.limiter import SECOND, Limiter
from services.edge.requestlog.reader import LogReader
from services.edge.requestlog.snapshot import Fold, restore
from services.edge.requestlog.writer import RequestLog
from tests.unit.edge.logs import NOW, WALL, begin, everything, record, write
from tests.unit.edge.requestlog.test_failures import raising

pytestmark = pytest.mark.anyio
START_SECONDS = 3.0


async def caught_up(snapshots: Snapshots) -> None:
    while await snapshots.turn():
        pass


def limits(path: Path) -> object:
    limiter = Limiter()
    assert restore(path, limiter, NOW + SECOND, WALL + SECOND) == []
    return limiter.dump()


async def test_a_start_folds_what_came_after_the_snapshot_only(tmp_path: Path) -> None:
    log = begin(tmp_path)
    snapshots = Snapshots(tmp_path, records=1000)
    for first in range(0, 3000, 50):
        write(log, *(record(number) for number in range(first, first + 50)))
        await caught_up(snapshots)
        reader = LogReader(log.path)
        snapshot = reader.snapshot()
        assert snapshot is not None
        entries, _ = everything(reader, snapshot.position)
        assert len(entries) <= 1000
        assert snapshots.cover(log.id, snapshot.position)
    whole = limits(tmp_path)
    log.close()
    for slot in log.path.glob("snapshot*"):
        slot.unlink()
    assert limits(tmp_path) == whole


async def test_a_log_that_has_ended_is_in_its_snapshot_whole_and_is_not_folded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(tmp_path)
    write(log, *(record(number) for number in range(100)))
    log.close()
    snapshots = Snapshots(tmp_path)
    await caught_up(snapshots)
    reader = LogReader(log.path)
    assert snapshots.cover(log.id, everything(reader)[1])
    monkeypatch.setattr(Fold, "advance", lambda _: pytest.fail("it was folded again"))
    assert not await snapshots.turn()


async def test_a_long_log_does_not_delay_the_others(tmp_path: Path) -> None:
    long, short = begin(tmp_path), begin(tmp_path)
    endpoint = "/" + "x" * 1000
    for first in range(0, 12_000, 1000):
        write(long, *(record(number, endpoint=endpoint) for number in range(first, first + 1000)))
    write(short, record(0))
    short.close()
    snapshots = Snapshots(tmp_path, records=10**9)
    for _ in range(3):
        assert await snapshots.turn()
    end = everything(LogReader(short.path))[1]
    assert snapshots.cover(short.id, end)
    assert not snapshots.cover(long.id, end)
    long.close()


async def test_a_snapshot_that_can_not_be_written_leaves_the_one_before_and_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(tmp_path)
    snapshots = Snapshots(tmp_path, records=10)
    write(log, *(record(number) for number in range(20)))
    await caught_up(snapshots)
    before = LogReader(log.path).snapshot()
    write(log, *(record(number) for number in range(20, 50)))

    def full(fd: int, data: bytes, at: int) -> int:
        return real(fd, data[:50], at)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", full)
    await caught_up(snapshots)
    assert LogReader(log.path).snapshot() == before
    monkeypatch.setattr(os, "pwrite", real)
    monkeypatch.setattr(os, "fdatasync", raising(errno.EIO))
    await caught_up(snapshots)
    monkeypatch.undo()
    end = everything(LogReader(log.path))[1]
    assert not snapshots.cover(log.id, end)
    write(log, *(record(number) for number in range(50, 70)))
    await caught_up(snapshots)
    assert snapshots.cover(log.id, end)
    log.close()


async def test_a_log_that_can_not_be_read_is_no_hindrance_to_the_others(tmp_path: Path) -> None:
    headless, good = begin(tmp_path), begin(tmp_path)
    write(good, record(0))
    headless.close()
    for path in headless.path.iterdir():
        path.write_bytes(b"")
    snapshots = Snapshots(tmp_path)
    await caught_up(snapshots)
    assert snapshots.cover(good.id, everything(LogReader(good.path))[1])
    good.close()


async def test_a_start_takes_three_seconds_at_most_at_any_backlog(tmp_path: Path) -> None:
    """However much is not shipped: as many records after the last snapshot as there may be, of as many keys, and what
    three hundred starts have left."""
    made = begin(tmp_path)
    for first in range(0, 100_000, 1000):
        write(
            made,
            *(record(n, key=n % 100_000, admitted_ns=boot_ns(), time_ns=wall_ns()) for n in range(first, first + 1000)),
        )
    many = [short_log(tmp_path, number) for number in range(300)]
    snapshots = Snapshots(tmp_path)
    await caught_up(snapshots)
    write(made, *(record(n, key=n % 100_000, admitted_ns=boot_ns(), time_ns=wall_ns()) for n in range(99_000)))
    made.close()
    limiter = Limiter()
    started = time.process_time()
    assert restore(tmp_path, limiter, boot_ns(), wall_ns()) == []
    took = time.process_time() - started
    assert took < START_SECONDS, f"{took:.2f} s for {len(many)} logs"
    assert len(limiter.dump()) == 100_000


def short_log(path: Path, number: int) -> RequestLog:
    log = begin(path, sync_interval=0.05)
    write(log, record(number, admitted_ns=boot_ns(), time_ns=wall_ns()))
    log.close()
    return log


@pytest.mark.parametrize("call", range(1, 5))
async def test_what_is_read_when_the_disk_refuses_the_next_look_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    log = begin(tmp_path, segment_bytes=500)
    for number in range(20):
        write(log, record(number))
    fold, whole = (Fold(LogReader(log.path)) for _ in range(2))
    real, calls = LogReader.segments, 0

    def segments(self: LogReader) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.EMFILE, "too many open files")
        return real(self)

    assert fold.advance()
    with monkeypatch.context() as patched:
        patched.setattr(LogReader, "segments", segments)
        while calls < call:
            with suppress(OSError):
                fold.advance()
    for each in (fold, whole):
        while each.advance():
            pass
    assert fold.limiter.dump() == whole.limiter.dump()
    log.close()
