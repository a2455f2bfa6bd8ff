"""The limiter's fold of request logs: each admission once, whatever was deleted, across boots."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.edge.domain import Limits
from services.edge.limiter import LONGEST, SECOND, Limiter
from services.edge.requestlog import snapshot as requestlog_fold
from services.edge.requestlog.format import frames
from services.edge.requestlog.reader import Entry, LogReader, Position
from services.edge.requestlog.snapshot import Fold, outlived, restore, snapshot
from services.edge.requestlog.writer import Note
from tests.unit.edge.logs import (
    NOW,
    WALL,
    begin,
    everything,
    only,
    positions,
    record,
    rolled,
    write,
)


def counted(limiter: Limiter) -> dict[int, int]:
    return {key: 10**6 - limiter.peek(key, Limits(None, None, 10**6), NOW + SECOND).remaining for key in limiter.dump()}


def test_the_fold_counts_each_admission_once_noted_or_not(tmp_path: Path) -> None:
    log = begin(tmp_path)
    log.append(record(1, key=1))
    log.adopt([Note(2, NOW)])
    log.append(record(2, key=2, noted=True))
    log.adopt([Note(3, NOW)])
    log.append(record(3, key=4, decision="rate_limited", status_code=429))
    log.append(record(4, key=4, decision="revoked", status_code=401))
    log.append(record(5, key=5, status_code=502))
    log.flush()
    log.close()
    limiter = Limiter()
    assert restore(tmp_path, limiter, NOW + SECOND, WALL + SECOND) == []
    assert counted(limiter) == {1: 1, 2: 1, 3: 1, 5: 1}


def test_a_start_folds_all_logs_of_the_node_live_ones_too(tmp_path: Path) -> None:
    ended, live = begin(tmp_path), begin(tmp_path)
    write(ended, *(record(number, key=1) for number in range(5)))
    write(live, *(record(number, key=1) for number in range(7)))
    ended.close()
    limiter = Limiter()
    restore(tmp_path, limiter, NOW + SECOND, WALL + SECOND)
    assert counted(limiter) == {1: 12}
    live.close()
    assert restore(tmp_path / "none", limiter, NOW, WALL) == []


def test_snapshots_change_nothing_wherever_they_are_taken(tmp_path: Path) -> None:
    reader, _ = rolled(tmp_path)
    whole = Limiter()
    restore(tmp_path, whole, NOW + SECOND, WALL + SECOND)
    for position in positions(reader):
        sweep(reader, position)
        limiter = Limiter()
        restore(tmp_path, limiter, NOW + SECOND, WALL + SECOND)
        assert limiter.dump() == whole.dump()


def test_segments_that_are_deleted_under_a_start_are_counted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, _ = rolled(tmp_path)
    whole = Limiter()
    restore(tmp_path, whole, NOW + SECOND, WALL + SECOND)
    places = list(positions(reader))
    ahead = [places[len(places) // 3], places[-1]]
    real = LogReader.scan

    def sweep_then_scan(self: LogReader, position: Position) -> tuple[list[Entry | Note], Position]:
        monkeypatch.setattr(LogReader, "scan", real)
        if ahead:
            sweep(reader, ahead.pop(0))
            monkeypatch.setattr(LogReader, "scan", sweep_then_scan if ahead else real)
        return real(self, position)

    monkeypatch.setattr(LogReader, "scan", sweep_then_scan)
    limiter = Limiter()
    restore(tmp_path, limiter, NOW + SECOND, WALL + SECOND)
    assert limiter.dump() == whole.dump()


def sweep(reader: LogReader, position: Position) -> None:
    """What the agent does with a log that is stored up to a position."""
    snapshot(reader, position)
    for segment in reader.segments():
        if segment < position.segment:
            reader.delete_segment(segment)


def test_a_log_that_is_removed_under_a_start_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rolled(tmp_path / "a")
    reader = only(tmp_path / "a")
    monkeypatch.setattr(LogReader, "snapshot", lambda self: self.remove() if self.path.exists() else None)
    assert restore(tmp_path / "a", Limiter(), NOW, WALL) == []
    assert not reader.path.exists()


def test_a_snapshot_forgets_what_the_log_itself_has_left_behind(tmp_path: Path) -> None:
    log = begin(tmp_path)
    write(log, record(0, key=1), record(1, key=2, admitted_ns=NOW + LONGEST), record(2, key=3, admitted_ns=NOW + 1))
    log.close()
    taken = snapshot(only(tmp_path), everything(only(tmp_path))[1])
    assert set(taken.counts) == {2, 3}


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_snapshot_that_can_not_be_read_is_none(tmp_path: Path, damage: bytes | None) -> None:
    reader, _ = rolled(tmp_path)
    snapshot(reader, everything(reader)[1])
    path = reader.path / "snapshot"
    data = path.read_bytes()
    end = list(frames(data))[-1].end
    path.write_bytes(data[: end - 1] + b"\xff" + data[end:] if damage is None else damage)
    assert reader.snapshot() is None
    assert Fold(reader).position == reader.start()


def test_admissions_of_another_boot_come_through_the_wall_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(tmp_path)
    write(log, *(record(number, key=1) for number in range(5)))
    log.close()
    monkeypatch.setattr(requestlog_fold, "boot_id", lambda: "another boot")
    # The machine started a moment ago; 20 s have passed on the wall.
    now_boot, now_wall = 5 * SECOND, WALL + 20 * SECOND
    for _ in range(2):
        limiter = Limiter()
        restore(tmp_path, limiter, now_boot, now_wall)
        refused = limiter.admit(1, Limits(5, None, None), now_boot)
        assert not refused.allowed
        assert 39 * SECOND < refused.reset_ns - now_boot <= 40 * SECOND + SECOND // 2
        snapshot(only(tmp_path), everything(only(tmp_path))[1])


def test_an_ended_log_is_outlived_when_its_last_admission_has_left_every_window(tmp_path: Path) -> None:
    log = begin(tmp_path)
    write(log, record(0))
    log.close()
    reader = only(tmp_path)
    assert not outlived(reader, NOW + 2 * LONGEST, WALL)
    snapshot(reader, everything(reader)[1])
    assert not outlived(reader, NOW + LONGEST - 1, WALL)
    assert outlived(reader, NOW + LONGEST, WALL)
