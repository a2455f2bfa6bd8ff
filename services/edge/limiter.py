"""Sliding-window limits over admission times, kept in sub-buckets: exact enough to tell when to come back, small enough to hold.

A window remembers admissions by sub-bucket (0.5 s of a minute, 10 s of an hour, 120 s of a day) as the time of the
bucket's last admission and its count. A bucket counts in full until a whole window after that last admission, so in no
sliding window, wherever it begins, more than the limit is admitted; a lone admission is exact to the nanosecond.
A window is half open, as long as its span: what was admitted at t counts until t + span, exclusively.

All windows count every admission, also those without a limit: a limit set later knows the past, and the state is the
same whether it grew request by request or was folded from a request log.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Final

from services.edge.domain import Limits, Policy, Verdict

SECOND: Final = 1_000_000_000
# Name, span and sub-bucket in nanoseconds, shortest first.
WINDOWS: Final[tuple[tuple[str, int, int], ...]] = (
    ("minute", 60 * SECOND, SECOND // 2),
    ("hour", 3600 * SECOND, 10 * SECOND),
    ("day", 86400 * SECOND, 120 * SECOND),
)
LONGEST: Final = WINDOWS[-1][1]
# Compiled, it is a machine word.
NEVER: Final = 1 << 61

Buckets = Sequence[Sequence[tuple[int, int]]]
Dump = Mapping[int, Buckets]


UNLIMITED: Final = Verdict(allowed=True, limit=None, remaining=0, reset_ns=0, limits=Limits(), shown="")


class _Window:
    """The admissions of one key in one window: parallel lists of last times and counts by bucket, and their sum.

    `end` is that of the newest bucket. No admission leaves the window before `expires`.
    """

    __slots__ = ("counts", "end", "expires", "lasts", "name", "seconds", "span", "step", "used")

    def __init__(self, name: str, span: int, step: int) -> None:
        self.name = name
        self.seconds = span // SECOND
        self.span = span
        self.step = step
        self.lasts: list[int] = []
        self.counts: list[int] = []
        self.used = 0
        self.end = 0
        self.expires = NEVER

    def drop(self, now: int) -> None:
        """Forgets the buckets that `now` has left behind."""
        gone = bisect_right(self.lasts, now - self.span)
        self.used -= sum(self.counts[:gone])
        del self.lasts[:gone], self.counts[:gone]
        self.expires = self.lasts[0] + self.span if self.lasts else NEVER

    def add(self, at: int, count: int = 1) -> None:
        """Counts admissions at `at`, in any order; one that the newest has left behind a window ago no longer matters."""
        lasts = self.lasts
        if lasts:
            if lasts[-1] <= at < self.end:
                lasts[-1] = at
                self.counts[-1] += count
                self.used += count
                return
            if at + self.span <= lasts[-1]:
                return
        self.used += count
        self.expires = min(self.expires, at + self.span)
        index = bisect_left(lasts, at - at % self.step)
        if index < len(lasts) and lasts[index] // self.step == at // self.step:
            self.counts[index] += count
            lasts[index] = max(lasts[index], at)
        else:
            lasts.insert(index, at)
            self.counts.insert(index, count)
        self.end = lasts[-1] - lasts[-1] % self.step + self.step

    def policy(self, limit: int, now: int) -> Policy:
        """The window as a policy of `limit`."""
        remaining = limit - self.used
        if limit <= 0:
            return self.name, limit, self.seconds, 0, now + self.span
        if remaining > 0:
            return self.name, limit, self.seconds, remaining, self.lasts[0] + self.span if self.lasts else now
        return self.name, limit, self.seconds, 0, self._frees(1 - remaining)

    def _frees(self, count: int) -> int:
        # When `count` admissions, at most those that are held, no longer count.
        for last, held in zip(self.lasts, self.counts, strict=True):
            count -= held
            if count <= 0:
                return last + self.span
        raise AssertionError("fewer admissions are held than were asked for")


class Limiter:
    """The limits of all keys of one process, in memory. Times are boot-clock nanoseconds and never decrease."""

    def __init__(self) -> None:
        self._keys: dict[int, tuple[_Window, ...]] = {}
        self._sweep: Iterator[int] = iter(())
        self._recallable: list[tuple[Dump, int, int]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def admit(self, key_id: int, limits: Limits, now_ns: int) -> Verdict:
        """Admits a request in all windows, or refuses it and consumes nothing. A limit of 0 admits none, ever."""
        windows = self._keys.get(key_id) or self._open(key_id)
        bounds = (limits.minute, limits.hour, limits.day)
        limit, remaining, shown = 0, NEVER, None
        for window, bound in zip(windows, bounds):  # noqa: B905 - the hot path; lengths are constant
            if window.expires <= now_ns:
                window.drop(now_ns)
            if bound is None:
                continue
            left = bound - window.used
            if left <= 0:
                return _refusal(windows, limits, bounds, now_ns)
            if left <= remaining:
                limit, remaining, shown = bound, left, window
        for window in windows:
            if now_ns < window.end and now_ns >= window.lasts[-1]:
                window.lasts[-1] = now_ns
                window.counts[-1] += 1
                window.used += 1
            else:
                window.add(now_ns)
        if shown is None:
            return UNLIMITED
        return Verdict(True, limit, remaining - 1, shown.lasts[0] + shown.span, limits, shown.name)

    def peek(self, key_id: int, limits: Limits, now_ns: int) -> Verdict:
        """What `admit` would see, consuming nothing: `allowed` whether it would admit, `remaining` before it did."""
        windows = self._keys.get(key_id) or self._recalled(key_id)
        bounds = (limits.minute, limits.hour, limits.day)
        for window in windows:
            window.drop(now_ns)
        policies = _policies(windows, bounds, now_ns)
        if any(remaining == 0 for _, _, _, remaining, _ in policies):
            return _refusal(windows, limits, bounds, now_ns)
        if not policies:
            return UNLIMITED
        shown, limit, _, remaining, reset = min(reversed(policies), key=_REMAINING)
        return Verdict(True, limit, remaining, reset, limits, shown, policies)

    def record(self, key_id: int, admitted_ns: int, count: int = 1) -> None:
        """Counts admissions of the past, in any order, such as a request log tells of. Never of the future."""
        for window in self._keys.get(key_id) or self._open(key_id):
            window.add(admitted_ns, count)

    def forget(self, now_ns: int, keys: int = 1000) -> None:
        """Frees what no longer counts of at most `keys` keys; called now and then, it comes round to all of them."""
        batch = tuple(islice(self._sweep, keys))
        if not batch:
            self._sweep = iter(tuple(self._keys))
            batch = tuple(islice(self._sweep, keys))
        self._recallable = [each for each in self._recallable if each[2] + LONGEST > now_ns]
        for key_id in batch:
            windows = self._keys.get(key_id, ())
            for window in windows:
                window.drop(now_ns)
            if not any(window.lasts for window in windows):
                self._keys.pop(key_id, None)

    def dump(self) -> Dump:
        """Every key's buckets, per window as (last admission, count): what `load` takes."""
        for dump, _, _ in self._recallable:
            for key_id in dump:
                if key_id not in self._keys:
                    self._open(key_id)
        return {key_id: _buckets(windows) for key_id, windows in self._keys.items()}

    def load(self, dump: Dump, *, shift_ns: int = 0, now_ns: int | None = None) -> None:
        """Adds a dump to what is held, its times shifted by `shift_ns` (another boot's clock) but never beyond `now_ns`."""
        for key_id, dumped in dump.items():
            _add(self._keys.get(key_id) or self._open(key_id), dumped, shift_ns, now_ns)

    def load_later(self, dump: Dump, *, shift_ns: int, now_ns: int) -> None:
        """Like `load`, but each key's buckets are taken when the key is first asked for: a million keys cost nothing now.

        Forgotten a day after `now_ns`.
        """
        for key_id in self._keys:
            if key_id in dump:
                _add(self._keys[key_id], dump[key_id], shift_ns, now_ns)
        self._recallable.append((dump, shift_ns, now_ns))

    def merge(self, other: Limiter, *, shift_ns: int, now_ns: int) -> None:
        """Like `load` of what another limiter holds, which is used up by this."""
        for key_id, windows in other._keys.items():
            if not shift_ns and key_id not in self._keys and not any(key_id in dump for dump, _, _ in self._recallable):
                self._keys[key_id] = windows
            else:
                _add(self._keys.get(key_id) or self._open(key_id), _buckets(windows), shift_ns, now_ns)

    def _open(self, key_id: int) -> tuple[_Window, ...]:
        windows = self._keys[key_id] = self._recalled(key_id)
        return windows

    def _recalled(self, key_id: int) -> tuple[_Window, ...]:
        windows = self._fresh()
        for dump, shift_ns, now_ns in self._recallable:
            if key_id in dump:
                _add(windows, dump[key_id], shift_ns, now_ns)
        return windows

    @staticmethod
    def _fresh() -> tuple[_Window, ...]:
        return tuple(_Window(name, span, step) for name, span, step in WINDOWS)


def _buckets(windows: Sequence[_Window]) -> Buckets:
    return tuple(tuple(zip(window.lasts, window.counts, strict=True)) for window in windows)


def _add(windows: Sequence[_Window], dumped: Buckets, shift_ns: int, now_ns: int | None) -> None:
    for window, buckets in zip(windows, dumped, strict=True):
        for last, count in buckets:
            at = last + shift_ns
            window.add(at if now_ns is None else min(at, now_ns), count)


Bounds = tuple[int | None, int | None, int | None]
_REMAINING = itemgetter(3)
_LATEST = itemgetter(4, 2)


def _policies(windows: Iterable[_Window], bounds: Bounds, now: int) -> tuple[Policy, ...]:
    limited = zip(windows, bounds, strict=True)
    return tuple(window.policy(bound, now) for window, bound in limited if bound is not None)


def _refusal(windows: Iterable[_Window], limits: Limits, bounds: Bounds, now: int) -> Verdict:
    for window in windows:
        window.drop(now)
    policies = _policies(windows, bounds, now)
    shown, limit, _, _, reset = max((policy for policy in policies if policy[3] == 0), key=_LATEST)
    return Verdict(False, limit, 0, reset, limits, shown, policies)
