"""Any bytes whatsoever become an event or a record to park, and what is kept of them fits the database."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.consumer.intake import StreamVersion, by_versions, latest, read_streams
from shared.consumer.records import blamed, portions, read_log_records, reason, text
from shared.kafka import Record
from tests.unit.shared.consumer.test_intake import P0, P1, metered, record, relayed

LOG, STREAM = metered(0, 0, -1).value or b"", relayed(0, "a", 1).value or b""

# Whole events with something in them changed, so that the fuzz gets behind the first brace.
spliced = st.builds(
    lambda value, at, put, cut: value[: at % len(value)] + put + value[at % len(value) + cut :],
    st.sampled_from([LOG, STREAM]),
    st.integers(0, 2000),
    st.one_of(st.binary(max_size=8), st.sampled_from([b"1e999", b"-1", b"9" * 400, b"\\ud800", b"\\u0000", b"null"])),
    st.integers(0, 12),
)
values = st.one_of(st.none(), st.binary(max_size=60), spliced)
headers = st.lists(
    st.tuples(st.sampled_from(["source", "sequence", "previous", "x"]), st.one_of(st.none(), st.binary(max_size=20))),
    max_size=5,
)
anything = st.builds(
    lambda value, key, found: record(0, value, key, found),
    values,
    st.one_of(st.none(), st.binary(max_size=20)),
    headers,
)
DEEP = record(0, b'{"data": {"x": ' + b"[" * 100_000, b"a")
NULLS = record(0, None, None, [("source", None), ("sequence", None), ("previous", None)])  # type: ignore[arg-type]


@example(DEEP)
@example(NULLS)
@given(anything)
def test_any_record_is_an_event_or_parked(odd: Record) -> None:
    found, nameless = read_log_records([odd])
    assert len(found) + len(nameless) == 1
    [stream] = read_streams({P0: [odd]})[P0]
    assert (stream.event is None) == bool(stream.error)
    part = by_versions({P0: [stream]}, dict.fromkeys([stream.stream], StreamVersion()))
    assert len(part.events) + len(part.poison) + len(part.stopped) == 1
    part = latest({P0: [odd]})
    assert len(part.events) + len(part.poison) == (odd.value is not None)
    blamed(odd).encode(errors="replace")
    for error in [each.error for each in found] + [error for _, error in nameless] + [stream.error]:
        assert "\x00" not in error
        assert len(error.encode()) < 2000


@given(st.text())
def test_text_is_what_a_database_keeps(anything: str) -> None:
    assert "\x00" not in text(anything).encode().decode()
    assert len(reason(ValueError(anything))) <= 500


@pytest.mark.parametrize(
    ("value", "who"),
    [
        (LOG, "owner-3"),
        (msgspec.json.encode({"data": {"owner_id": 4, "x": "\x00"}, "time": 5}), "owner-4"),
        (msgspec.json.encode({"actor": "key-9", "data": {}}), "key-9"),
        (STREAM, "a"),
        (b"junk", "a"),
        (None, "a"),
    ],
)
def test_whoever_is_behind_a_record_is_named_as_far_as_it_says(value: bytes | None, who: str) -> None:
    assert blamed(record(0, value, b"a")) == who


def test_a_stream_s_name_fits_an_index() -> None:
    long = "k" * 5000
    [read] = read_streams({P0: [relayed(0, long, 1)]})[P0]
    assert (read.stream, read.event) == ("", None)


def test_portions_are_bounded_and_lose_nothing() -> None:
    sizes: dict[Any, list[int]] = {P0: [10, 10, 500, 10], P1: [10, 10]}
    fetched = {p: [record(at, b"x" * size) for at, size in enumerate(each)] for p, each in sizes.items()}
    found = list(portions(fetched, 3, 100))
    assert [[len(r.value or b"") for each in part.values() for r in each] for part in found] == [
        [10, 10],
        [500],
        [10, 10, 10],
    ]
    for partition, records in fetched.items():
        assert [r for part in found for r in part.get(partition, [])] == records
