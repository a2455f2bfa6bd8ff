"""A request log with damage: a damaged record loses itself only, and visibly."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.limiter import Limiter
from services.edge.requestlog.format import OVERHEAD, RECORD, frames, pack, segment_name
from services.edge.requestlog.reader import LogReader, LogUnreadableError
from services.edge.requestlog.snapshot import restore, snapshot
from tests.unit.edge.logs import (
    NOW,
    PARTITIONS,
    WALL,
    begin,
    entries_of,
    everything,
    only,
    previous_of,
    record,
    rolled,
    write,
)


def test_a_log_cut_short_anywhere_has_the_records_before_the_cut(tmp_path: Path) -> None:
    records = [record(number) for number in range(6)]
    log = begin(tmp_path)
    write(log, *records)
    log.close()
    reader = only(tmp_path)
    path = reader.path / segment_name(0)
    data = path.read_bytes()
    ends = [frame.end for frame in frames(data)]
    for cut in range(ends[2], len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(1 for end in ends[1:] if end <= cut)
        entries, position = everything(reader)
        assert entries == entries_of(records)[:whole]
        assert position.damaged == 0 and reader.finished(position)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_damaged_record_loses_itself_only_and_visibly(tmp_path: Path, flip: int) -> None:
    records = [record(number) for number in range(5)]
    log = begin(tmp_path)
    write(log, *records)
    log.close()
    reader = only(tmp_path)
    path = reader.path / segment_name(0)
    data = path.read_bytes()
    ends = [frame.end for frame in frames(data)]
    kept = previous_of([(number, one) for number, one in enumerate(records) if number != 2])
    for at in range(ends[2], ends[3]):
        path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
        for limit in (10, 4096):
            entries, position = everything(reader, limit=limit)
            assert entries == kept, at - ends[2]
            assert position.damaged == 1
            assert position.end == 5


@pytest.mark.parametrize("place", ["first", "last"])
def test_damage_at_either_end_of_a_log_is_visible_too(tmp_path: Path, place: str) -> None:
    records = [record(number) for number in range(3)]
    log = begin(tmp_path)
    write(log, *records)
    reader = only(tmp_path)
    path = reader.path / segment_name(0)
    data = path.read_bytes()
    ends = [frame.end for frame in frames(data)]
    damaged_record = 0 if place == "first" else 2
    kept = previous_of([(number, one) for number, one in enumerate(records) if number != damaged_record])
    log.close()
    for at in range(ends[damaged_record], ends[damaged_record + 1]):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        entries, position = everything(reader)
        assert entries == kept
        assert position.damaged == 1 and reader.finished(position)


def test_the_last_record_of_a_live_log_is_not_given_up_for_damaged_before_another_follows(tmp_path: Path) -> None:
    log = begin(tmp_path)
    write(log, record(0), record(1))
    path = log.path / segment_name(0)
    data = path.read_bytes()
    torn = data[:-5] + b"\0" * 5
    for limit in (10, 4096):
        path.write_bytes(torn)
        reader = only(tmp_path)
        entries, position = everything(reader, limit=limit)
        assert (entries, position.damaged) == (entries_of([record(0)]), 0)
        path.write_bytes(data)
        assert everything(reader, position, limit)[0] == entries_of([record(0), record(1)])[1:]
    path.write_bytes(torn)
    write(log, record(2))
    entries, position = everything(only(tmp_path))
    assert ([entry.ordinal for entry in entries], position.damaged) == ([0, 2], 1)
    log.close()


def test_a_record_that_is_missing_without_a_trace_is_visible(tmp_path: Path) -> None:
    records = [record(number) for number in range(4)]
    log = begin(tmp_path)
    write(log, *records)
    log.close()
    path = log.path / segment_name(0)
    data = path.read_bytes()
    ends = [frame.end for frame in frames(data)]
    path.write_bytes(data[: ends[1]] + data[ends[2] :])
    entries, position = everything(only(tmp_path))
    assert ([entry.ordinal for entry in entries], position.damaged) == ([0, 2, 3], 1)


def test_a_record_that_comes_a_second_time_is_passed_over(tmp_path: Path) -> None:
    records = [record(number) for number in range(4)]
    log = begin(tmp_path)
    write(log, *records)
    log.close()
    path = log.path / segment_name(0)
    data = path.read_bytes()
    ends = [frame.end for frame in frames(data)]
    path.write_bytes(data[: ends[2]] + data[ends[0] :])
    entries, position = everything(only(tmp_path))
    assert (entries, position.damaged) == (entries_of(records), 2)


def test_damage_at_the_end_of_a_live_log_is_passed_when_a_record_follows(tmp_path: Path) -> None:
    log = begin(tmp_path)
    write(log, record(0))
    path = log.path / segment_name(0)
    with path.open("ab") as file:
        file.write(b"\0" * 100)
    reader = only(tmp_path)
    entries, position = everything(reader)
    assert (len(entries), position.damaged) == (1, 0)
    write(log, record(1))
    entries, position = everything(reader, position)
    assert ([entry.ordinal for entry in entries], position.damaged) == ([1], 1)
    log.close()


def test_a_lost_header_costs_no_record(tmp_path: Path) -> None:
    reader, records = rolled(tmp_path)
    segments = reader.segments()
    for first in (segments[0], segments[3]):
        path = reader.path / segment_name(first)
        data = path.read_bytes()
        path.write_bytes(data[:30] + b"\xff" + data[31:])
    again = LogReader(reader.path)
    entries, position = everything(again)
    assert entries == entries_of(records)
    assert position.damaged == 2


def test_a_lost_header_behind_deleted_segments_is_made_good_by_the_snapshot(tmp_path: Path) -> None:
    reader, records = rolled(tmp_path)
    first, *deleted = reversed(reader.segments())
    path = reader.path / segment_name(first)
    data = path.read_bytes()
    header = next(frames(data)).end
    expected = entries_of(records)
    path.write_bytes(data[:30] + b"\xff" + data[31:header])
    snapshot(reader, everything(reader)[1])
    for segment in reversed(deleted):
        reader.delete_segment(segment)
    before = {entry.partition: entry.ordinal for entry in expected if entry.ordinal < first}
    assert everything(LogReader(reader.path))[1].lasts == tuple(before.get(n, -1) for n in range(PARTITIONS))
    path.write_bytes(data[:30] + b"\xff" + data[31:])
    snapshot(reader, everything(reader)[1])
    assert everything(LogReader(reader.path))[0] == expected[first:]


def test_a_segment_cut_short_in_the_middle_of_a_log_is_damage(tmp_path: Path) -> None:
    reader, records = rolled(tmp_path)
    first, second = reader.segments()[2:4]
    path = reader.path / segment_name(first)
    data = path.read_bytes()
    ends = [frame.end for frame in frames(data)]
    for cut in (ends[-2], ends[-2] + 1, len(data) - 1):
        path.write_bytes(data[:cut])
        entries, position = everything(reader)
        assert [entry.ordinal for entry in entries] == [n for n in range(len(records)) if n != second - 1]
        assert position.damaged == 1
        # Nobody is told to wait for what is lost, though the next segment's header knows of it.
        assert entries == previous_of([(n, one) for n, one in enumerate(records) if n != second - 1])


def test_a_log_without_any_header_says_so(tmp_path: Path) -> None:
    log = begin(tmp_path)
    log.close()
    for path in log.path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(LogUnreadableError):
        only(tmp_path).start()
    assert restore(tmp_path, Limiter(), NOW, WALL) == [log.id]


@given(text=st.text(max_size=200), at=st.integers(0, OVERHEAD - 1))
@settings(deadline=None)
def test_no_text_pretends_to_be_a_record(text: str, at: int) -> None:
    forged = pack(RECORD, 1, b"forged").decode("latin-1")
    data = pack(RECORD, 0, msgspec.msgpack.encode(text + forged))
    damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    follower = pack(RECORD, 2, b"next")
    assert [frame.ordinal for frame in frames(damaged + follower)] == [-1, 2]


@given(data=st.binary(max_size=300), good=st.lists(st.binary(max_size=20), max_size=3))
@settings(deadline=None)
def test_any_bytes_can_be_read_and_what_is_whole_after_them_is_found(data: bytes, good: list[bytes]) -> None:
    whole = b"".join(pack(RECORD, number, content) for number, content in enumerate(good))
    found = [frame.content for frame in frames(data + whole) if frame.kind == RECORD]
    assert found[len(found) - len(good) :] == good
