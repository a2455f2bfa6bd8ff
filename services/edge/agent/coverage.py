"""What the usage service's marks say of a request log: what it has stored, what to ship again, what may be deleted. Pure.

The rules rest on one number for each partition of a log: the floor, the ordinal up to which everything is stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

NOTHING = -1
EVERYTHING = sys.maxsize


@dataclass(frozen=True)
class Mark:
    """What is stored of one log in one partition: all up to `last` but the open gaps (low, high]; `closed`: all there is."""

    last: int = NOTHING
    gaps: tuple[tuple[int, int], ...] = ()
    closed: bool = False

    @property
    def floor(self) -> int:
        """The ordinal up to which nothing is missing."""
        if self.closed:
            return EVERYTHING
        return min([self.last, *(low for low, _ in self.gaps)])


UNKNOWN = Mark()


def went_back(before: Mark, now: Mark) -> bool:
    """Whether the usage service has lost what it had stored, as after the restore of an older database."""
    return now.floor < before.floor


def covered(lasts: Sequence[int], marks: Sequence[Mark]) -> bool:
    """Whether a log is stored up to the place where `lasts` are its partitions' last ordinals (-1: none)."""
    return all(last <= mark.floor for last, mark in zip(lasts, marks, strict=True))


@dataclass(frozen=True)
class Run:
    """Records of one log in one partition that Kafka has acknowledged: the ordinal of the last, and the offset after it.

    `passed`: since when (s) the usage service is beyond that offset.
    """

    last: int
    end: int
    passed: float | None = None


def still_open(runs: Iterable[Run], mark: Mark, next_offset: int, now: float) -> list[Run]:
    """The runs that the mark does not cover whole, each with the time since when the usage service is beyond it."""
    return [
        replace(run, passed=now) if run.passed is None and run.end <= next_offset else run
        for run in runs
        if run.last > mark.floor
    ]


def lost(runs: Iterable[Run], now: float, grace: float) -> bool:
    """Whether the broker lost an acknowledged record: for `grace` seconds the usage service has been beyond its offset
    without having stored it. (Marks of one commit may arrive one after the other; hence the grace.)"""
    return any(run.passed is not None and now - run.passed >= grace for run in runs)


def thinned(runs: list[Run], limit: int) -> list[Run]:
    """At most `limit` runs: neighbours become one, which is told as lost a little later than the first of them was."""
    while len(runs) > limit:
        runs = [*runs[1:-1:2], runs[-1]]
    return runs


def deletable(covered_since: Iterable[float | None], now: float, keep: float) -> int:
    """How many segments, oldest first, may go: all that the marks have covered for `keep` seconds without an earlier
    one that they have not. `covered_since` has each segment's time in order; None: it is not covered."""
    count = 0
    for since in covered_since:
        if since is None or now - since < keep:
            break
        count += 1
    return count
