"""Marks: how a consumer knows which records of a request log it has already taken. Pure.

A mark stands for one log in one partition. A log's ordinals are spread over the partitions, so within one partition not
every ordinal exists; that is why each record names its predecessor there (`previous`, -1 at first). Records can arrive
again (a re-ship), be lost for a while, and arrive after later ones (the first batch of a fresh producer may be lost while
its second is accepted): each is taken exactly once. What the edge's disk lost meanwhile will never come: its successor,
sent again, then names an earlier predecessor, and nobody waits for it any longer.
"""

from __future__ import annotations

from typing import NamedTuple

Gaps = tuple[tuple[int, int], ...]


class Mark(NamedTuple):
    """Everything up to `last` is taken but for the open gaps: intervals (low, high], ascending, disjoint."""

    last: int = -1
    gaps: Gaps = ()


START = Mark()


def take(mark: Mark, sequence: int, previous: int) -> tuple[bool, Mark]:
    """Whether the record is new, and the mark with it taken.

    Gaps shrink by `previous`, a duplicate's too: between it and `sequence` the partition has no record of this log.
    `ValueError` when the two can't be a record's ordinal and its predecessor's.
    """
    if not -1 <= previous < sequence:
        raise ValueError(f"no record has ordinal {sequence} and predecessor {previous}")
    mark = _told(mark, sequence, previous)
    last, gaps = mark
    if sequence > last:
        return True, Mark(sequence, _opened(mark, previous))
    for index, (low, high) in enumerate(gaps):
        if low < sequence <= high:
            before = ((low, previous),) if previous > low else ()
            after = ((sequence, high),) if sequence < high else ()
            return True, Mark(last, gaps[:index] + before + after + gaps[index + 1 :])
    return False, mark


def close(mark: Mark, sequence: int, previous: int) -> Mark:
    """The mark after the log's closing record, which is never a duplicate: what it says is true every time."""
    if not -1 <= previous < sequence:
        raise ValueError(f"no record has ordinal {sequence} and predecessor {previous}")
    mark = _told(mark, sequence, previous)
    return Mark(max(mark.last, sequence), _opened(mark, previous))


def _told(mark: Mark, sequence: int, previous: int) -> Mark:
    """The mark without what a record says does not exist of gaps before it."""
    if not mark.gaps or mark.gaps[0][0] >= sequence:
        return mark
    gaps = ((low, min(high, previous)) if high < sequence else (low, high) for low, high in mark.gaps)
    return Mark(mark.last, tuple((low, high) for low, high in gaps if low < high))


def _opened(mark: Mark, previous: int) -> Gaps:
    return (*mark.gaps, (mark.last, previous)) if previous > mark.last else mark.gaps
