"""How much poison stops a consumer: of many sources, never of one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.consumer.poison import Tolerance, TooMuchPoison


def names(first: int, count: int) -> set[str]:
    return {f"owner-{number}" for number in range(first, first + count)}


def test_one_source_stops_nothing_however_much_it_sends() -> None:
    tolerance = Tolerance()
    for _ in range(100):
        tolerance.allow(frozenset(), {"owner-1"}, 5000)


def test_few_among_many_stop_nothing() -> None:
    tolerance = Tolerance()
    for _ in range(20):
        tolerance.allow(names(0, 40), names(100, 15), 1000)


def test_many_sources_stop_the_consumer_at_once() -> None:
    with pytest.raises(TooMuchPoison, match="11 of 15"):
        Tolerance().allow(names(0, 4), names(100, 11), 100)


def test_many_one_after_the_other_stop_it_too() -> None:
    tolerance = Tolerance()
    with pytest.raises(TooMuchPoison):
        for number in range(12):
            tolerance.allow(frozenset(), names(number, 1), 1)


def test_what_is_long_ago_counts_no_more() -> None:
    tolerance = Tolerance()
    for number in range(30):
        tolerance.allow(frozenset(), names(number, 1), 2000)


def test_a_try_leaves_no_trace_in_the_original() -> None:
    tolerance = Tolerance()
    tolerance.allow(frozenset(), names(0, 10), 10)
    for _ in range(2):
        with pytest.raises(TooMuchPoison):
            replace(tolerance).allow(frozenset(), names(10, 1), 10)
    tolerance.allow(names(20, 50), frozenset(), 100)
