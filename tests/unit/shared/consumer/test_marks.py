"""Marks: whatever is sent again, lost for a while or late, each record of a log is taken exactly once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.consumer.marks import START, Mark, close, take

Pair = tuple[int, int]


def records(ordinals: list[int]) -> list[Pair]:
    """(sequence, previous) of the ordinals that one partition got of a log."""
    return [(sequence, previous) for previous, sequence in zip([-1, *ordinals], ordinals, strict=False)]


def taken(arrivals: list[Pair], mark: Mark = START) -> tuple[list[int], Mark]:
    """What is taken of the arrivals, and the mark after them."""
    got = []
    for sequence, previous in arrivals:
        new, mark = take(mark, sequence, previous)
        if new:
            got.append(sequence)
    return got, mark


@st.composite
def logs(draw: st.DrawFn) -> list[Pair]:
    steps = draw(st.lists(st.integers(1, 4), min_size=1, max_size=40))
    ordinals = [sum(steps[: index + 1]) - 1 for index in range(len(steps))]
    return records(ordinals)


@given(logs(), st.data())
def test_any_order_with_repeats_takes_each_once_and_leaves_no_gap(log: list[Pair], data: st.DataObject) -> None:
    repeats = data.draw(st.lists(st.sampled_from(log), max_size=20))
    got, mark = taken(data.draw(st.permutations(log + repeats)))
    assert sorted(got) == [sequence for sequence, _ in log]
    assert mark == Mark(log[-1][0])


@given(logs(), st.data())
def test_shipper_that_loses_batches_and_goes_back_counts_each_once(log: list[Pair], data: st.DataObject) -> None:
    """Runs of the log from anywhere, with batches lost on the way, until at last all of it was sent."""
    arrivals: list[Pair] = []
    for _ in range(data.draw(st.integers(0, 5))):
        first = data.draw(st.integers(0, len(log) - 1))
        run = log[first : data.draw(st.integers(first, len(log)))]
        lost = data.draw(st.sets(st.integers(0, len(run))))
        arrivals += [record for index, record in enumerate(run) if index // 3 not in lost]
    before, mark = taken(arrivals)
    after, mark = taken(log, mark)
    assert sorted(before + after) == [sequence for sequence, _ in log]
    assert mark == Mark(log[-1][0])


@given(logs(), st.data())
def test_gaps_are_exactly_what_was_not_taken(log: list[Pair], data: st.DataObject) -> None:
    arrived = data.draw(st.lists(st.sampled_from(log), min_size=1))
    got, (last, gaps) = taken(arrived)
    assert last == max(got)
    missing = {sequence for sequence, _ in log if sequence < last} - set(got)
    inside = {sequence for sequence, _ in log if any(low < sequence <= high for low, high in gaps)}
    assert inside == missing
    assert list(gaps) == sorted(gaps)
    assert all(low < high for low, high in gaps)
    assert all(high <= low for (_, high), (low, _) in pairwise(gaps))
    assert all({low, high} - {-1} <= {sequence for sequence, _ in log} for low, high in gaps)


@given(logs(), st.data())
def test_closing_record_any_time_keeps_every_record_takeable(log: list[Pair], data: st.DataObject) -> None:
    end = log[-1][0] + data.draw(st.integers(1, 5))
    arrivals: list[Pair | None] = [*data.draw(st.permutations(log)), None, None]
    got: list[int] = []
    mark = START
    for arrival in data.draw(st.permutations(arrivals)):
        if arrival is None:
            mark = close(mark, end, log[-1][0])
            continue
        new, mark = take(mark, *arrival)
        got += [arrival[0]] * new
    assert sorted(got) == [sequence for sequence, _ in log]
    assert mark == Mark(end)


def test_late_record_splits_its_gap_by_its_predecessor() -> None:
    mark = Mark(40, ((3, 30),))
    assert take(mark, 20, 10) == (True, Mark(40, ((3, 10), (20, 30))))
    assert take(mark, 5, 3) == (True, Mark(40, ((5, 30),)))
    assert take(mark, 30, 10) == (True, Mark(40, ((3, 10),)))
    assert take(mark, 30, 3) == (True, Mark(40))


def test_what_a_disk_lost_is_waited_for_no_longer_when_its_successor_comes_again() -> None:
    mark = Mark(40, ((3, 10), (20, 30)))
    assert take(mark, 35, 20) == (False, Mark(40, ((3, 10),)))
    assert take(mark, 35, 25) == (False, Mark(40, ((3, 10), (20, 25))))
    assert take(mark, 41, 1) == (True, Mark(41))
    assert take(mark, 25, 5) == (True, Mark(40, ((3, 5), (25, 30))))
    assert close(mark, 50, 3) == Mark(50)


@given(logs(), st.data())
def test_whatever_is_lost_for_good_no_gap_stays_when_the_rest_was_sent_again(
    log: list[Pair], data: st.DataObject
) -> None:
    before, mark = taken(data.draw(st.lists(st.sampled_from(log))))
    lost = data.draw(st.sets(st.sampled_from(log)))
    left = records([sequence for sequence, _ in log if (sequence, _) not in lost])
    after, mark = taken(left, mark)
    assert sorted(before + after) == sorted(set(before) | {sequence for sequence, _ in left})
    mark = close(mark, log[-1][0] + 1, left[-1][0] if left else -1)
    assert mark == Mark(log[-1][0] + 1)


def test_log_that_sent_nothing_to_a_partition_closes_without_a_gap() -> None:
    assert close(START, 9, -1) == Mark(9)


@pytest.mark.parametrize(("sequence", "previous"), [(3, 3), (3, 4), (3, -2), (-1, -1)])
def test_impossible_identities_are_refused(sequence: int, previous: int) -> None:
    with pytest.raises(ValueError, match="no record has ordinal"):
        take(START, sequence, previous)
    with pytest.raises(ValueError, match="no record has ordinal"):
        close(START, sequence, previous)
