"""What is taken of a batch: each event once, in order, poison apart, and nothing behind a missing version."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from shared.consumer.intake import (
    RETENTION,
    LogMark,
    Tolerance,
    TooMuchPoison,
    by_marks,
    by_versions,
    latest,
    read_requests,
    streams_of,
)
from shared.consumer.marks import Mark
from shared.events.requests import LogClosed, Request, RequestEvent, RequestMetered, encode_request
from shared.kafka import Partition, Record

NOW = datetime(2024, 3, 21, 12, tzinfo=UTC)
P0, P1 = Partition("topic", 0), Partition("topic", 1)


def record(offset: int, value: bytes | None, key: bytes = b"", headers: Any = (), partition: int = 0) -> Record:
    return ConsumerRecord("topic", partition, offset, 0, 0, key, value, None, 0, 0, headers)


def metered(offset: int, sequence: int, previous: int, kind: str = RequestMetered.TYPE, **changes: Any) -> Record:
    plain: dict[str, Any] = {"key_id": 7, "owner_id": 3, "status_code": 200, "decision": "allowed", "via": "proxy"}
    moment, source = changes.pop("time", NOW), changes.pop("source", "log")
    data = Request(sequence, previous, "edge-1", **plain | changes)
    event = RequestEvent(id="", source=source, type=kind, time=moment, data=data)
    headers = [("source", source.encode()), ("sequence", b"%d" % sequence), ("previous", b"%d" % previous)]
    return record(offset, encode_request(event), b"key-7", headers)


def relayed(offset: int, stream: str, version: int, partition: int = 0, **changes: Any) -> Record:
    event = {"type": "x", "time": NOW, "subject": stream, "streamversion": version, "data": {}} | changes
    return record(offset, msgspec.json.encode(event), stream.encode(), partition=partition)


def sequences(records: list[Record], marks: dict[tuple[str, int], LogMark]) -> tuple[list[int], list[int]]:
    """Ordinals taken, and offsets parked."""
    requests, lost = read_requests({P0: records})
    part = by_marks(requests, marks, NOW)
    return [event.data.sequence for event in part.events], sorted(r.offset for r, _ in [*part.poison, *lost])


def fresh() -> dict[tuple[str, int], LogMark]:
    return defaultdict(LogMark)


BAD: list[dict[str, Any]] = [
    {"key_id": 0},
    {"owner_id": -1},
    {"status_code": 1000},
    {"status_code": -1},
    {"response_time": -0.1},
    {"response_time": 1e300},
    {"key_id": 2**63},
    {"key_version": -1},
    {"endpoint": "/a\x00b"},
    {"client_address": "\x00"},
    {"time": datetime(2024, 3, 21, 12)},  # noqa: DTZ001 - that is what is wrong with it
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_implausible_events_are_parked_and_move_the_mark(change: dict[str, Any]) -> None:
    marks = fresh()
    assert sequences([metered(0, 0, -1), metered(1, 1, 0, **change), metered(2, 2, 1)], marks) == ([0, 2], [1])
    assert marks["log", 0].mark == Mark(2)


def test_text_that_only_looks_like_nul_is_taken() -> None:
    assert sequences([metered(0, 0, -1, endpoint="/a\\u0000b")], fresh()) == ([0], [])


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b'{"data": 1}', b"\xff", b'{"source": "\\ud800"}'])
def test_unreadable_record_is_known_by_its_headers(value: bytes | None) -> None:
    marks, whole = fresh(), metered(1, 1, 0)
    broken = record(1, value, headers=whole.headers)
    assert sequences([metered(0, 0, -1), broken, metered(2, 2, 1), broken], marks) == ([0, 2], [1])
    assert marks["log", 0].mark == Mark(2)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("source", b"log"), ("sequence", b"1"), ("previous", b"1")],
        [("source", b"log"), ("sequence", b"%d" % 2**63), ("previous", b"1")],
        [("source", b"a\x00"), ("sequence", b"1"), ("previous", b"0")],
        [("source", b"x" * 65), ("sequence", b"1"), ("previous", b"0")],
        [("source", b"\xff"), ("sequence", b"1"), ("previous", b"0")],
        [("source", b"log"), ("sequence", b"one"), ("previous", b"0")],
    ],
    ids=str,
)
def test_record_without_an_identity_is_parked_and_leaves_a_gap(headers: list[tuple[str, bytes]]) -> None:
    marks = fresh()
    records = [metered(0, 0, -1), record(1, b"junk", headers=headers), metered(2, 2, 1)]
    assert sequences(records, marks) == ([0, 2], [1])
    assert marks["log", 0].mark == Mark(2, ((0, 1),))


def test_unknown_types_move_the_mark_and_are_not_stored() -> None:
    marks = fresh()
    assert sequences([metered(0, 0, -1, kind="request.rated"), metered(1, 1, 0)], marks) == ([1], [])
    assert marks["log", 0] == LogMark(Mark(1), changed=True)


def test_log_that_is_gone_gives_duplicates_only() -> None:
    marks = {("log", 0): LogMark(gone=True)}
    assert sequences([metered(0, 5, 4), metered(1, 6, 5, kind=LogClosed.TYPE)], marks) == ([], [])
    assert marks == {("log", 0): LogMark(gone=True)}


def test_repeats_do_not_touch_the_mark() -> None:
    marks = {("log", 0): LogMark(Mark(5), closed=True)}
    assert sequences([metered(0, 4, 3), metered(1, 5, 4, kind=LogClosed.TYPE)], marks) == ([], [])
    assert not marks["log", 0].changed


def test_times_are_held_within_bounds() -> None:
    times = [NOW - timedelta(days=400), NOW, NOW + timedelta(days=400)]
    requests, _ = read_requests({P0: [metered(n, n, n - 1, time=moment) for n, moment in enumerate(times)]})
    part = by_marks(requests, fresh(), NOW)
    assert [event.time for event in part.events] == [NOW - RETENTION, NOW, NOW + timedelta(minutes=1)]
    assert part.clamped == 2


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 4)), max_size=30))
def test_versions_are_taken_in_order_and_nothing_behind_a_hole(arrivals: list[tuple[str, int]]) -> None:
    records = [relayed(offset, stream, version) for offset, (stream, version) in enumerate(arrivals)]
    versions: dict[str, int] = {}
    part = by_versions({P0: records}, versions)
    taken: dict[str, list[int]] = {"a": [], "b": []}
    for event in part.events:
        taken[event.subject].append(event.streamversion)
    assert all(found == list(range(1, len(found) + 1)) for found in taken.values())
    assert versions == {stream: len(found) for stream, found in taken.items() if found}
    if P0 in part.stopped:
        stream, version = arrivals[part.next_offsets[P0]]
        assert version > len(taken[stream]) + 1
        assert len(part.events) + part.duplicates == part.next_offsets[P0]
    else:
        assert len(part.events) + part.duplicates == len(arrivals)


def test_hole_stops_its_partition_only() -> None:
    batch = {P0: [relayed(0, "a", 2)], P1: [relayed(0, "b", 1, partition=1)]}
    part = by_versions(batch, {})
    assert (list(part.stopped), part.next_offsets) == ([P0], {P0: 0})
    assert [event.subject for event in part.events] == ["b"]


@pytest.mark.parametrize(
    "bad",
    [
        record(0, b"junk", b"a"),
        record(0, None, b"a"),
        relayed(0, "a", 1, subject="b"),
        relayed(0, "a\x00", 1),
        relayed(0, "a", 1, data=None),
        relayed(0, "a", 1, time="noon"),
    ],
    ids=lambda bad: str(bad.value),
)
def test_unreadable_relayed_events_are_parked(bad: Record) -> None:
    part = by_versions({P0: [bad, relayed(1, "c", 1)]}, {})
    assert [found.offset for found, _ in part.poison] == [0]
    assert [event.subject for event in part.events] == ["c"]
    assert streams_of({P0: [bad, relayed(1, "c", 1)]}) <= {"a", "c"}


def test_latest_takes_everything_but_deletions() -> None:
    part = latest({P0: [relayed(0, "a", 0), record(1, None, b"a"), relayed(2, "a", 0), record(3, b"junk", b"a")]})
    assert ([r.offset for r in part.records], [r.offset for r, _ in part.poison]) == ([0, 2], [3])


def test_tolerance_counts_in_a_row_across_batches() -> None:
    tolerance = Tolerance(in_a_row=10, share=2.0)
    for batch in range(5):
        records = [record(batch * 4 + n, b"") for n in range(4)]
        tolerance.allow({P0: records}, records[1:])
    records = [record(100 + n, b"") for n in range(10)]
    tolerance.allow({P0: [record(99, b""), *records]}, records)
    with pytest.raises(TooMuchPoison, match="in a row"):
        tolerance.allow({P0: [record(200, b"")]}, [record(200, b"")])


def test_tolerance_limits_the_share() -> None:
    tolerance = Tolerance(in_a_row=10, share=0.1)
    offset = 0
    for _ in range(20):
        records = [record(offset + n, b"") for n in range(100)]
        offset += 100
        tolerance.allow({P0: records}, records[::11][:9])
    with pytest.raises(TooMuchPoison, match="10%"):
        for _ in range(100):
            records = [record(offset + n, b"") for n in range(100)]
            offset += 100
            tolerance.allow({P0: records}, records[::5])
