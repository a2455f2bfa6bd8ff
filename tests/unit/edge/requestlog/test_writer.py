"""The request log: what was flushed is read, in order, each record with the same place whenever and however it is read."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.requestlog.format import frames, segment_name
from services.edge.requestlog.reader import Entry, LogReader, logs
from services.edge.requestlog.snapshot import snapshot
from services.edge.requestlog.writer import Note
from tests.unit.edge.logs import (
    NOW,
    PARTITIONS,
    begin,
    entries_of,
    everything,
    only,
    positions,
    record,
    rolled,
    write,
)


def test_what_was_flushed_is_read_in_order_with_its_place(tmp_path: Path) -> None:
    records = [record(number) for number in range(50)]
    log = begin(tmp_path)
    write(log, *records)
    reader = only(tmp_path)
    assert (reader.id, reader.header.edge_id, reader.header.partitions) == (log.id, "edge-1", PARTITIONS)
    assert everything(reader)[0] == entries_of(records)
    log.close()


def test_what_was_only_appended_is_not(tmp_path: Path) -> None:
    log = begin(tmp_path)
    log.append(record(0))
    assert everything(only(tmp_path))[0] == []
    log.flush()
    assert len(everything(only(tmp_path))[0]) == 1
    log.close()


def test_a_flush_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = begin(tmp_path)
    writes: list[int] = []
    real = os.write

    def count(fd: int, data: bytes) -> int:
        writes.append(len(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", count)
    for number in range(10):
        log.append(record(number))
    log.adopt([Note(1, NOW)])
    log.flush()
    log.flush()
    assert len(writes) == 1
    monkeypatch.undo()
    log.close()


def test_each_start_is_a_log_of_its_own(tmp_path: Path) -> None:
    ids = set()
    for _ in range(3):
        log = begin(tmp_path)
        log.close()
        ids.add(log.id)
    assert {reader.id for reader in logs(tmp_path)} == ids
    assert all(len(log_id) == 32 for log_id in ids)


def test_a_log_is_ended_when_its_writer_lets_go_and_not_before(tmp_path: Path) -> None:
    log = begin(tmp_path)
    write(log, record(0))
    reader, position = only(tmp_path), only(tmp_path).start()
    assert not reader.ended() and not reader.finished(position)
    log.close()
    assert reader.ended() and not reader.finished(position)
    assert reader.finished(everything(reader)[1])


def test_the_end_of_a_log_tells_where_its_closed_record_belongs(tmp_path: Path) -> None:
    log = begin(tmp_path)
    write(log, *(record(number) for number in range(20)))
    log.close()
    entries, position = everything(only(tmp_path))
    assert position.end == 20
    for partition, last in enumerate(position.lasts):
        assert last == max((entry.ordinal for entry in entries if entry.partition == partition), default=-1)


def test_notes_are_not_read_as_records(tmp_path: Path) -> None:
    log = begin(tmp_path)
    log.adopt([Note(3, NOW)])
    log.append(record(0))
    log.adopt([Note(4, NOW)])
    log.flush()
    entries, position = everything(only(tmp_path))
    assert entries == entries_of([record(0)])
    assert position.ordinal == 1
    items, _ = only(tmp_path).scan(only(tmp_path).start())
    assert [item for item in items if isinstance(item, Note)] == [Note(3, NOW), Note(4, NOW)]
    log.close()


# Reading


@given(
    cuts=st.lists(st.integers(0, 60), max_size=8),
    limits=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    segment_bytes=st.sampled_from([1, 500, 5000, 10**6]),
)
@settings(max_examples=30, deadline=None)
def test_reading_gives_the_same_from_wherever_and_in_whatever_pieces(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], limits: list[int], segment_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("log")
    records = [record(number) for number in range(60)]
    log = begin(path, segment_bytes=segment_bytes)
    for first, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        write(log, *records[first:end])
    log.close()
    reader, position, read = only(path), only(path).start(), 0
    for turn in range(1000):
        entries, position = reader.read(position, limits[turn % len(limits)])
        assert entries == entries_of(records)[read : read + len(entries)]
        read += len(entries)
        if turn % 10 == 0:
            assert everything(LogReader(reader.path), position, limits[0])[0] == entries_of(records)[read:]
        if read == 60:
            return


def test_a_reader_beside_the_writer_sees_every_record_once(tmp_path: Path) -> None:
    records = [record(number) for number in range(5000)]
    log = begin(tmp_path, segment_bytes=50_000)

    def flood() -> None:
        for at in range(0, 5000, 7):
            write(log, *records[at : at + 7])
        log.close()

    writer = threading.Thread(target=flood)
    writer.start()
    reader, position, seen = only(tmp_path), only(tmp_path).start(), list[Entry]()
    while not reader.finished(position):
        entries, position = reader.read(position, 3000)
        seen += entries
    writer.join()
    assert seen == entries_of(records)
    assert position.damaged == 0
    assert len(reader.segments()) > 10


# Segments


def test_segments_are_named_by_their_first_record(tmp_path: Path) -> None:
    reader, _ = rolled(tmp_path)
    segments = reader.segments()
    assert segments[0] == 0 and len(segments) > 10
    for first in segments[1:]:
        data = (reader.path / segment_name(first)).read_bytes()
        assert len(data) < 1500
        header, one, *_ = frames(data)
        assert (header.ordinal, one.ordinal) == (first, first)


def test_a_segment_of_notes_alone_does_not_roll(tmp_path: Path) -> None:
    log = begin(tmp_path, segment_bytes=100)
    for _ in range(20):
        log.adopt([Note(1, NOW)])
        log.flush()
    write(log, record(0))
    write(log, record(1))
    log.close()
    assert only(tmp_path).segments() == [0, 1]
    assert len(everything(only(tmp_path))[0]) == 2


def test_what_is_left_reads_the_same_when_older_segments_are_deleted(tmp_path: Path) -> None:
    reader, records = rolled(tmp_path)
    _, end = everything(reader)
    snapshot(reader, end)
    while segments := reader.segments():
        left = [entry for entry in entries_of(records) if entry.ordinal >= segments[0]]
        assert everything(LogReader(reader.path)) == (left, end)
        reader.delete_segment(segments[0])
    again = LogReader(reader.path)
    assert again.header.edge_id == "edge-1"
    assert everything(again) == ([], end)
    assert again.finished(again.start())


def test_a_reading_goes_on_behind_segments_that_were_deleted_under_it(tmp_path: Path) -> None:
    reader, records = rolled(tmp_path)
    position = reader.read(reader.start(), 10).position
    snapshot(reader, everything(reader)[1])
    segments = reader.segments()
    for segment in segments[:3]:
        reader.delete_segment(segment)
    entries, end = everything(reader, position)
    assert [entry.record for entry in entries] == records[segments[3] :]
    assert end.damaged == 0


def test_a_segment_is_kept_while_no_snapshot_covers_it(tmp_path: Path) -> None:
    reader, _ = rolled(tmp_path)
    segments = reader.segments()
    with pytest.raises(ValueError, match="not covered"):
        reader.delete_segment(segments[0])
    half = next(position for position in positions(reader) if position.segment == segments[5])
    snapshot(reader, half)
    reader.delete_segment(segments[4])
    with pytest.raises(ValueError, match="not covered"):
        reader.delete_segment(segments[-1])
    assert segments[4] not in reader.segments()


def test_the_segment_being_written_and_a_live_log_are_never_deleted(tmp_path: Path) -> None:
    log = begin(tmp_path)
    write(log, record(0))
    reader = only(tmp_path)
    snapshot(reader, everything(reader)[1])
    with pytest.raises(ValueError, match="being written"):
        reader.delete_segment(0)
    with pytest.raises(ValueError, match="being written"):
        reader.remove()
    log.close()
    reader.delete_segment(0)
    reader.remove()
    assert logs(tmp_path) == [] and list(tmp_path.iterdir()) == []
