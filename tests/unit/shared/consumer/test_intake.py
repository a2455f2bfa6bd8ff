"""What is taken of a batch: each event once, in order, poison apart, and nothing behind a missing version."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from shared.consumer.intake import (
    RETENTION,
    Intake,
    LogMark,
    Poison,
    StreamVersion,
    by_marks,
    by_versions,
    latest,
    one_by_one,
    read_streams,
)
from shared.consumer.marks import Mark
from shared.consumer.records import Fetched, read_log_records, read_logs
from shared.events.requests import LogClosed, Request, RequestEvent, RequestMetered, encode_request
from shared.kafka import Partition, Record

NOW = datetime(2024, 3, 21, 12, tzinfo=UTC)
P0, P1 = Partition("topic", 0), Partition("topic", 1)


def record(offset: int, value: bytes | None, key: bytes = b"", headers: Any = (), partition: int = 0) -> Any:
    return ConsumerRecord("topic", partition, offset, 0, 0, key, value, None, 0, 0, headers)


def metered(offset: int, sequence: int, previous: int, kind: str = RequestMetered.TYPE, **changes: Any) -> Any:
    plain: dict[str, Any] = {"key_id": 7, "owner_id": 3, "status_code": 200, "decision": "allowed", "via": "proxy"}
    moment, source = changes.pop("time", NOW), changes.pop("source", "log")
    data = Request(sequence, previous, "edge-1", **plain | changes)
    event = RequestEvent(id="", source=source, type=kind, time=moment, data=data)
    headers = [("source", source.encode()), ("sequence", b"%d" % sequence), ("previous", b"%d" % previous)]
    return record(offset, encode_request(event), b"key-7", headers)


def relayed(offset: int, stream: str, version: int, partition: int = 0, **changes: Any) -> Record:
    event = {"type": "x", "time": NOW, "subject": stream, "streamversion": version, "data": {}} | changes
    return record(offset, msgspec.json.encode(event), stream.encode(), partition=partition)


def streams(fetched: Fetched, versions: dict[str, StreamVersion], parked: set[tuple[int, int]] = frozenset()) -> Intake:  # type: ignore[assignment]
    return by_versions(read_streams(fetched), versions, parked)


def sequences(records: list[Record], marks: dict[str, LogMark]) -> tuple[list[int], list[int]]:
    """Ordinals taken, and offsets parked."""
    taken, part = logged(records, marks)
    return [event.data.sequence for event in taken], sorted(record.offset for _, record, _ in part.poison)


def logged(records: list[Record], marks: dict[str, LogMark], size: int = 1) -> tuple[list[RequestEvent], Intake]:
    """What is taken of them, so many at once, and the rest."""
    part = Intake()
    slices = [records[at : at + size] for at in range(0, len(records), size)]
    return [event for each in slices for event in by_marks(part, P0, read_logs(each), marks, NOW)], part


def fresh() -> dict[str, LogMark]:
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
    assert marks["log"].mark == Mark(2)


def test_text_that_only_looks_like_nul_is_taken() -> None:
    assert sequences([metered(0, 0, -1, endpoint="/a\\u0000b")], fresh()) == ([0], [])


def test_text_that_only_looks_like_nul_does_not_make_those_beside_it_slow() -> None:
    records = [metered(n, n, n - 1, correlation_id="\\u0000" if n == 3 else None) for n in range(5)]
    assert read_logs(records).events is not None


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b'{"data": 1}', b"\xff", b'{"source": "\\ud800"}'])
def test_unreadable_record_is_known_by_its_headers(value: bytes | None) -> None:
    marks, whole = fresh(), metered(1, 1, 0)
    broken = record(1, value, headers=whole.headers)
    assert sequences([metered(0, 0, -1), broken, metered(2, 2, 1), broken], marks) == ([0, 2], [1])
    assert marks["log"].mark == Mark(2)


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
    assert marks["log"].mark == Mark(2, ((0, 1),))


def test_unknown_types_move_the_mark_and_are_not_stored() -> None:
    marks = fresh()
    assert sequences([metered(0, 0, -1, kind="request.rated"), metered(1, 1, 0)], marks) == ([1], [])
    assert marks["log"] == LogMark(1, changed=True)


def test_log_that_is_gone_gives_duplicates_only() -> None:
    marks = {"log": LogMark(gone=True)}
    assert sequences([metered(0, 5, 4), metered(1, 6, 5, kind=LogClosed.TYPE)], marks) == ([], [])
    assert marks == {"log": LogMark(gone=True)}


def test_repeats_do_not_touch_the_mark() -> None:
    marks = {"log": LogMark(5, closed=True)}
    assert sequences([metered(0, 4, 3), metered(1, 5, 4, kind=LogClosed.TYPE)], marks) == ([], [])
    assert not marks["log"].changed


def test_times_are_held_within_bounds() -> None:
    times = [NOW - timedelta(days=400), NOW, NOW + timedelta(days=400)]
    records = [metered(n, n, n - 1, time=moment) for n, moment in enumerate(times)]
    taken, part = logged(records, fresh())
    assert [event.time for event in taken] == [NOW - RETENTION, NOW, NOW + timedelta(minutes=1)]
    assert part.clamped == 2


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 4)), max_size=30))
def test_versions_are_taken_in_order_and_nothing_behind_a_hole(arrivals: list[tuple[str, int]]) -> None:
    records = [relayed(offset, stream, version) for offset, (stream, version) in enumerate(arrivals)]
    versions = defaultdict[str, StreamVersion](StreamVersion)
    part = streams({P0: records}, versions)
    taken: dict[str, list[int]] = {"a": [], "b": []}
    for event in part.events:
        taken[event.subject].append(event.streamversion)
    assert all(found == list(range(1, len(found) + 1)) for found in taken.values())
    assert {name: held.version for name, held in versions.items() if held.version} == {
        stream: len(found) for stream, found in taken.items() if found
    }
    if P0 in part.stopped:
        stream, version = arrivals[part.next_offsets[P0]]
        assert version > len(taken[stream]) + 1
        assert len(part.events) + part.duplicates == part.next_offsets[P0]
    else:
        assert len(part.events) + part.duplicates == len(arrivals)


def test_hole_stops_its_partition_only() -> None:
    batch = {P0: [relayed(0, "a", 2)], P1: [relayed(0, "b", 1, partition=1)]}
    part = streams(batch, defaultdict(StreamVersion))
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
    part = streams({P0: [bad, relayed(1, "c", 1)]}, defaultdict(StreamVersion))
    assert [found.offset for _, found, _ in part.poison] == [0]
    assert [event.subject for event in part.events] == ["c"]


def test_latest_takes_everything_but_deletions() -> None:
    part = latest({P0: [relayed(0, "a", 0), record(1, None, b"a"), relayed(2, "a", 0), record(3, b"junk", b"a")]})
    assert ([r.offset for _, r in part.origins], [r.offset for _, r, _ in part.poison]) == ([0, 2], [3])


POISON = [
    pytest.param(relayed(1, "a", 2, time="noon"), id="readable version"),
    pytest.param(record(1, b"junk", b"a"), id="junk"),
    pytest.param(record(1, b"[" * 5000, b"a"), id="too deep"),
    pytest.param(record(1, None, b"a"), id="nothing"),
]


@pytest.mark.parametrize("bad", POISON)
def test_parked_event_does_not_stop_its_stream(bad: Record) -> None:
    versions = defaultdict[str, StreamVersion](StreamVersion)
    part = streams({P0: [relayed(0, "a", 1), bad, relayed(2, "a", 3), relayed(3, "b", 1)]}, versions)
    assert [(event.subject, event.streamversion) for event in part.events] == [("a", 1), ("a", 3), ("b", 1)]
    assert ([found.offset for _, found, _ in part.poison], part.stopped) == ([1], {})
    assert versions["a"] == StreamVersion(3, 0, changed=True)


@pytest.mark.parametrize("bad", POISON)
def test_parked_event_that_is_read_again_hides_nothing(bad: Record) -> None:
    """The partition is read again from its start: what is known is dropped, and a version that is missing is missed."""
    versions = defaultdict[str, StreamVersion](StreamVersion)
    before = [relayed(0, "a", 1), bad, relayed(2, "a", 3)]
    streams({P0: before}, versions)
    part = streams({P0: [*before, relayed(3, "a", 5)]}, versions, {(0, 1)})
    assert (part.events, part.poison, part.duplicates) == ([], [], 3)
    assert part.next_offsets == {P0: 3}


def test_version_after_a_parked_one_waits_for_as_many_as_were_parked() -> None:
    versions = defaultdict[str, StreamVersion](StreamVersion)
    part = streams({P0: [relayed(0, "a", 1), record(1, b"", b"a"), relayed(2, "a", 4)]}, versions)
    assert part.next_offsets == {P0: 2}
    assert "a goes on with version 4 at offset 2; 1 is held" in part.stopped[P0]


def test_times_are_held_within_bounds_of_when_the_broker_had_them() -> None:
    received = NOW - timedelta(days=5)
    early = metered(0, 0, -1, time=received - timedelta(days=8))
    late = metered(1, 1, 0, time=NOW)
    stamped = [replace(each, timestamp=int(received.timestamp() * 1000), timestamp_type=1) for each in (early, late)]
    taken, part = logged(stamped, fresh())
    assert [event.time for event in taken] == [received - RETENTION, received + timedelta(minutes=1)]
    assert part.clamped == 2


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_times_that_have_no_utc_are_held_within_bounds(moment: str) -> None:
    value = metered(0, 0, -1).value or b""
    odd = replace(metered(0, 0, -1), value=value.replace(b"2024-03-21T12:00:00Z", moment.encode()))
    assert odd.value != value
    taken, _ = logged([odd], fresh())
    assert [abs(event.time - NOW) <= RETENTION for event in taken] == [True]


ODD: list[dict[str, Any]] = [
    *BAD,
    {"kind": LogClosed.TYPE, "key_id": 0, "owner_id": 0},
    {"kind": "request.rated"},
    {"kind": "request.rated", "key_id": 0},
    {"source": "other"},
    {"source": "a\x00"},
    {"source": "gone"},
    {"endpoint": '/"\\'},
    {"time": NOW - timedelta(days=400)},
    {"time": NOW + timedelta(days=400)},
    {"time": NOW.astimezone(timezone(timedelta(hours=5)))},
    {"decision": "rate_limited"},
]
JUNK = [None, b"", b"{", b'{"data": 1}', b"\xff", b"[" * 5000]


@st.composite
def arrivals(draw: st.DrawFn) -> list[Record]:
    """A log in its partition, mostly as it was written: with repeats, holes, predecessors that are none, and odd records."""
    found: list[Record] = []
    last = -1
    for offset in range(draw(st.integers(0, 25))):
        back = draw(st.sampled_from([1, 1, 1, 1, 1, 2, 3, 0, -2]))
        sequence, previous = last + back, draw(st.sampled_from([last, last, last, last, last - 1, last + 1]))
        change = draw(st.one_of(st.just({}), st.just({}), st.sampled_from(ODD)))
        made = metered(offset, max(sequence, 0), max(previous, -1), **change)
        if draw(st.integers(0, 9)) == 0:
            made = replace(made, value=draw(st.sampled_from(JUNK)))
        if draw(st.booleans()):
            received = NOW - timedelta(days=draw(st.integers(0, 9)))
            made = replace(made, timestamp=int(received.timestamp() * 1000), timestamp_type=1)
        found.append(made)
        last = max(last, sequence)
    return found


@given(arrivals(), st.integers(1, 30))
def test_what_is_taken_in_one_go_is_what_is_taken_one_by_one(records: list[Record], size: int) -> None:
    """With what is parked, and why, and the marks after it."""
    quick, slow = ({"gone": LogMark(gone=True)} for _ in range(2))
    marks, careful = defaultdict(LogMark, quick), defaultdict(LogMark, slow)
    taken, part = logged(records, marks, size)
    whole = Intake()
    for each in records:
        found, nameless = read_log_records([each])
        whole.poison += [(P0, record, error) for record, error in nameless]
        whole.events += [event for _, event in one_by_one(whole, P0, found, careful, NOW)]
    assert taken == whole.events
    assert marks == careful
    assert (sorted_by_offset(part.poison), part.duplicates, part.clamped) == (
        sorted_by_offset(whole.poison),
        whole.duplicates,
        whole.clamped,
    )


def sorted_by_offset(poison: list[Poison]) -> list[tuple[int, str]]:
    return sorted((record.offset, error) for _, record, error in poison)
