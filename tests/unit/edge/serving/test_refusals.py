"""A flood of refusals has few rows, and none of it goes untold."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from services.edge.clock import SECOND
from services.edge.serving.refusals import Refusals

WALL = 1_800_000_000 * SECOND
MINUTE = 60 * SECOND


@pytest.fixture
def refusals() -> Refusals:
    made = Refusals()
    made.sweep(WALL)
    return made


def flood(refusals: Refusals, key_id: int, count: int, boot: int = 0, wall: int = WALL) -> int:
    """How many of so many refusals within a second get a row."""
    return sum(refusals.take(key_id, boot, wall) for _ in range(count))


def test_twenty_a_second_have_a_row(refusals: Refusals) -> None:
    assert [flood(refusals, 7, 50), flood(refusals, 8, 19), flood(refusals, 7, 1)] == [20, 19, 0]
    assert flood(refusals, 7, 50, SECOND) == 20


def test_the_rest_is_told_by_key_and_minute(refusals: Refusals) -> None:
    with capture_logs() as told:
        flood(refusals, 7, 50)
        flood(refusals, 8, 21)
        refusals.sweep(WALL + MINUTE - 1)
        assert not told
        refusals.sweep(WALL + MINUTE)
        refusals.sweep(WALL + 2 * MINUTE)
    assert told == [
        {
            "event": "refusals without rows",
            "log_level": "warning",
            "minute": "2027-01-15T08:00+00:00",
            "by_key": {7: 30, 8: 1},
            "of_other_keys": 0,
        }
    ]


def test_a_flood_into_the_next_minute_is_told_of_both(refusals: Refusals) -> None:
    with capture_logs() as told:
        flood(refusals, 7, 25)
        flood(refusals, 7, 24, MINUTE, WALL + MINUTE)
        refusals.tell()
        refusals.tell()
    assert [(line["minute"][11:16], line["by_key"]) for line in told] == [("08:00", {7: 5}), ("08:01", {7: 4})]


def test_more_keys_than_are_kept_are_counted_together(refusals: Refusals) -> None:
    with capture_logs() as told:
        for key_id in range(10_000):
            flood(refusals, key_id, 22)
        refusals.tell()
    (line,) = told
    assert len(line["by_key"]) == 500
    assert sum(line["by_key"].values()) + line["of_other_keys"] == 20_000
    assert len(str(line)) < 16 * 1024
