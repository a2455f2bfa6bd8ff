"""The request log of a process that is killed, and on a disk that fails: no flushed record is lost, none is in two logs."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.edge.requestlog.format import RECORD, encode, frames, pack, segment_name
from services.edge.requestlog.reader import LogReader, logs
from services.edge.requestlog.writer import LogFailed, Note, Record, RequestLog
from tests.support.eventually import eventually_sync
from tests.unit.edge.logs import (
    NOW,
    begin,
    entries_of,
    everything,
    only,
    record,
    write,
)

# A process that is killed

_FLOOD = """
import sys
from pathlib import Path
from services.edge.requestlog.writer import RequestLog
from tests.unit.edge.logs import record
log = RequestLog.open(Path(sys.argv[1]), edge_id="edge-1", partitions=3, segment_bytes=200_000)
number = 0
while True:
    for _ in range(9):
        log.append(record(number))
        number += 1
    log.flush()
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_a_killed_process_has_lost_nothing_that_it_flushed(tmp_path: Path) -> None:
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", _FLOOD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(300):
            line = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        child.wait()
        flushed = int(([line, *rest.split("\n")[:-1]])[-1])
        reader = max(logs(tmp_path), key=lambda reader: reader.path.stat().st_mtime_ns)
        assert reader.ended()
        entries, position = everything(reader)
        assert len(entries) >= flushed
        assert entries == entries_of([record(number) for number in range(len(entries))])
        assert position.damaged == 0


def test_a_log_that_was_never_finished_making_is_not_seen_and_is_cleared_away(tmp_path: Path) -> None:
    hidden = tmp_path / ("." + "0" * 32)
    hidden.mkdir()
    (hidden / "lock").touch()
    begin(tmp_path).close()
    assert hidden.exists()
    os.utime(hidden, (1, 1))
    begin(tmp_path).close()
    assert not hidden.exists()
    assert len(logs(tmp_path)) == 2


def test_a_short_write_ends_the_log_and_tells_what_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(number) for number in range(6)]
    size = len(pack(RECORD, 0, encode(records[0])))
    for room in (0, 1, size - 1, size, size + 1, 3 * size + 5, 6 * size - 1):
        path = tmp_path / str(room)
        log = begin(path)
        for one in records:
            log.append(one)
        monkeypatch.setattr(os, "write", short(room))
        with pytest.raises(LogFailed) as failed:
            log.flush()
        monkeypatch.undo()
        assert failed.value.unwritten == tuple(records[room // size :])
        assert_ended_with(log, only(path), records[: room // size])


def test_a_write_that_falls_short_at_the_beginning_of_a_segment_ends_the_log_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(number) for number in range(4)]
    size = len(pack(RECORD, 0, encode(records[0])))
    log = begin(tmp_path / "whole", segment_bytes=1)
    write(log, records[0])
    write(log, records[1])
    log.close()
    header = next(frames((log.path / segment_name(1)).read_bytes())).end
    for room, kept in ((0, 1), (1, 1), (header, 1), (header + size - 1, 1), (header + size, 2), (header + 2 * size, 3)):
        path = tmp_path / str(room)
        log = begin(path, segment_bytes=1)
        write(log, records[0])
        for one in records[1:]:
            log.append(one)
        monkeypatch.setattr(os, "write", short(room))
        with pytest.raises(LogFailed) as failed:
            log.flush()
        monkeypatch.undo()
        assert failed.value.unwritten == tuple(records[kept:])
        assert_ended_with(log, only(path), records[:kept])


def test_a_segment_that_can_not_be_made_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = begin(tmp_path, segment_bytes=1)
    write(log, record(0))
    log.append(record(1))
    monkeypatch.setattr(os, "open", raising(errno.ENOSPC))
    with pytest.raises(LogFailed) as failed:
        log.flush()
    monkeypatch.undo()
    assert failed.value.unwritten == (record(1),)
    assert_ended_with(log, only(tmp_path), [record(0)])


def short(room: int) -> Callable[[int, bytes], int]:
    """write(2) on a disk with so many bytes left."""
    real = os.write
    return lambda fd, data: real(fd, data[:room])


def assert_ended_with(log: RequestLog, reader: LogReader, records: list[Record]) -> None:
    assert eventually_sync(reader.ended, deadline=10)
    assert everything(reader)[0] == entries_of(records)
    assert reader.finished(everything(reader)[1])
    log.append(record(99))
    with pytest.raises(LogFailed) as again:
        log.flush()
    assert again.value.unwritten == (record(99),)
    log.close()


def raising(error: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failed_write_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    log = begin(tmp_path)
    write(log, record(0))
    log.adopt([Note(5, NOW)])
    log.append(record(1))
    monkeypatch.setattr(os, "write", raising(error))
    with pytest.raises(LogFailed) as failed:
        log.flush()
    monkeypatch.undo()
    assert failed.value.unwritten == (Note(5, NOW), record(1))
    assert_ended_with(log, only(tmp_path), [record(0)])


def test_a_disk_that_is_really_full_ends_the_log_between_two_records(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", _UNTIL_FULL, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    appended, unwritten = (int(word) for word in child.stdout.split())
    reader = only(tmp_path)
    assert len(everything(reader)[0]) == appended - unwritten
    assert (reader.path / segment_name(0)).stat().st_size == 20_000


_UNTIL_FULL = """
import sys
from pathlib import Path
from services.edge.requestlog.writer import LogFailed, RequestLog
from tests.unit.edge.logs import record
log = RequestLog.open(Path(sys.argv[1]), edge_id="edge-1", partitions=3)
number = 0
try:
    while True:
        for _ in range(9):
            log.append(record(number))
            number += 1
        log.flush()
except LogFailed as failed:
    sys.stdout.write(f"{number} {len(failed.unwritten)}")
"""


def test_what_one_log_has_not_taken_the_next_one_takes_and_nothing_is_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(number) for number in range(10)]
    first = begin(tmp_path)
    for one in records:
        first.append(one)
    monkeypatch.setattr(os, "write", short(1000))
    with pytest.raises(LogFailed) as failed:
        first.flush()
    monkeypatch.undo()
    second = begin(tmp_path)
    second.adopt(failed.value.unwritten)
    second.flush()
    second.close()
    taken = [[entry.record for entry in everything(LogReader(log.path))[0]] for log in (first, second)]
    assert taken[0] + taken[1] == records and all(taken)


def test_a_failed_sync_ends_the_log_at_the_next_flush_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(tmp_path, sync_interval=0.001)
    tried = threading.Event()
    syncs: list[int] = []

    def fail(fd: int) -> None:
        syncs.append(fd)
        tried.set()
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, "fdatasync", fail)
    write(log, record(0))
    assert tried.wait(10)
    log.append(record(1))
    failure = eventually_sync(lambda: flush_failure(log), deadline=10)
    assert failure is not None
    assert failure.unwritten[-1] == record(1)
    assert eventually_sync(only(tmp_path).ended, deadline=10)
    assert len(syncs) == 1


def flush_failure(log: RequestLog) -> LogFailed | None:
    try:
        log.flush()
    except LogFailed as failure:
        return failure
    log.append(record(1))
    return None


def test_without_an_interval_a_failed_sync_fails_the_flush_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(tmp_path, sync_interval=0)
    write(log, record(0))
    monkeypatch.setattr(os, "fdatasync", raising(errno.EIO))
    log.append(record(1))
    with pytest.raises(LogFailed) as failed:
        log.flush()
    assert failed.value.unwritten == ()
    assert only(tmp_path).ended()


def test_without_an_interval_what_was_flushed_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = begin(tmp_path, sync_interval=0, segment_bytes=1000)
    synced: dict[str, int] = {}
    real = os.fdatasync

    def sync(fd: int) -> None:
        real(fd)
        synced[str(Path(f"/proc/self/fd/{fd}").readlink())] = os.fstat(fd).st_size

    monkeypatch.setattr(os, "fdatasync", sync)
    for number in range(20):
        write(log, record(number))
        newest = log.path / segment_name(only(tmp_path).segments()[-1])
        assert synced[str(newest.resolve())] == newest.stat().st_size
    log.close()


def test_with_an_interval_everything_is_synced_soon_and_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(tmp_path, sync_interval=0.01, segment_bytes=1000)
    synced: dict[str, int] = {}
    real = os.fdatasync

    def sync(fd: int) -> None:
        size = os.fstat(fd).st_size
        real(fd)
        synced[Path(f"/proc/self/fd/{fd}").readlink().name] = size

    monkeypatch.setattr(os, "fdatasync", sync)

    def all_synced() -> bool:
        return all(synced.get(path.name) == path.stat().st_size for path in log.path.glob("*.log"))

    for number in range(30):
        write(log, record(number))
    assert eventually_sync(all_synced, deadline=10)
    write(log, record(30))
    log.close()
    assert all_synced() and len(synced) > 1


def test_what_is_written_is_on_disk_an_interval_and_one_sync_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is written when a sync has just begun, on a disk whose syncs take most of the interval."""
    interval, sync = 0.2, 0.15
    log = begin(tmp_path, sync_interval=interval)
    begun, done = threading.Event(), threading.Semaphore(0)
    synced = 0
    real = os.fdatasync

    def slow(fd: int) -> None:
        nonlocal synced
        size = os.fstat(fd).st_size
        begun.set()
        real(fd)
        time.sleep(sync)
        synced = size
        done.release()

    monkeypatch.setattr(os, "fdatasync", slow)
    path = log.path / segment_name(0)
    late: list[float] = []
    for number in range(5):
        begun.clear()
        write(log, record(2 * number))
        assert begun.wait(10)
        write(log, record(2 * number + 1))
        written, there = time.monotonic(), path.stat().st_size
        while synced < there:
            assert done.acquire(timeout=10)
        late.append(time.monotonic() - written - interval - sync)
    assert sorted(late)[2] < 0.06, "but for moments in which the machine was busy"
    log.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_log_that_can_not_be_begun_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()
    for broken in ("write", "fdatasync", "fsync"):
        monkeypatch.setattr(os, broken, raising(errno.ENOSPC))
        with pytest.raises(LogFailed):
            begin(tmp_path)
        monkeypatch.undo()
    assert logs(tmp_path) == []
    assert open_files() == before


def test_a_log_leaves_no_file_open_and_no_thread_behind(tmp_path: Path) -> None:
    before, threads = open_files(), threading.active_count()
    for interval in (0, 0.01):
        log = begin(tmp_path, segment_bytes=500, sync_interval=interval)
        for number in range(20):
            write(log, record(number))
        log.close()
        log.close()
    assert (open_files(), threading.active_count()) == (before, threads)
