"""The limits against a model that keeps every admission's time: never more than the limit, and a reset that holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.edge.domain import Limits
from services.edge.limiter import LONGEST, SECOND, WINDOWS, Dump, Limiter, Verdict

MINUTE, HOUR, DAY = (span for _, span, _ in WINDOWS)
START = 10**15
DEFAULT = Limits(100, 1000, 10000)
KEY = 7

limit = st.none() | st.integers(0, 6)
some_limits = st.builds(Limits, limit, limit, limit)
# Steps that matter: none, within a sub-bucket, over one, over each window, and just beside each of these.
step = st.sampled_from(
    [0, 1, SECOND // 2, SECOND, 10 * SECOND, 120 * SECOND, MINUTE, HOUR, DAY, DAY + 120 * SECOND]
).flatmap(lambda base: st.integers(-1, 1).map(lambda beside: max(0, base + beside))) | st.integers(0, 2 * DAY)


def bounds(limits: Limits) -> tuple[int | None, ...]:
    return limits.minute, limits.hour, limits.day


@dataclass
class Model:
    """Every admission of one key, and of each window the times that it may at the latest count until."""

    times: list[int] = field(default_factory=list)

    def exactly(self, now: int, span: int) -> int:
        """What a limiter without sub-buckets would count."""
        return sum(1 for time in self.times if now - span < time <= now)

    def at_most(self, now: int, span: int, bucket: int) -> int:
        """What one that may confuse times within a sub-bucket would count at most."""
        return sum(1 for time in self.times if now - span < time - time % bucket + bucket)


def check_verdict(verdict: Verdict, seen: Verdict, limits: Limits, now: int) -> None:
    """The window that a verdict tells of is the one that the rule names, and its figures hold together with those of all
    windows, as they are `seen` after it.
    """
    limited = [
        (name, bound, span) for (name, span, _), bound in zip(WINDOWS, bounds(limits), strict=True) if bound is not None
    ]
    assert [policy[:3] for policy in seen.policies] == [(name, bound, span // SECOND) for name, bound, span in limited]
    for _, bound, _, remaining, reset in seen.policies:
        assert 0 <= remaining <= bound
        assert now <= reset <= now + LONGEST
    if not limited:
        assert verdict.allowed and verdict.limit is None
    elif verdict.allowed:
        told = min(seen.policies, key=lambda policy: (policy[3], -policy[2]))
        assert (verdict.shown, verdict.limit, verdict.remaining, verdict.reset_ns) == (
            told[0],
            told[1],
            told[3],
            told[4],
        )
    else:
        told = max((policy for policy in seen.policies if not policy[3]), key=lambda policy: (policy[4], policy[2]))
        assert (verdict.shown, verdict.limit, verdict.remaining, verdict.reset_ns) == (told[0], told[1], 0, told[4])
        assert verdict.reset_ns > now


def remaining_of(verdict: Verdict) -> dict[str, int]:
    return {policy[0]: policy[3] for policy in verdict.policies}


class OneKey(RuleBasedStateMachine):
    """One key under everything that can happen to it, with limits so small that they bind."""

    def __init__(self) -> None:
        super().__init__()
        self.limiter = Limiter()
        self.model = Model()
        self.now = START
        self.limits = Limits(3, 5, 6)

    @initialize(limits=some_limits)
    def begin(self, limits: Limits) -> None:
        self.limits = limits

    @rule(limits=some_limits)
    def other_limits(self, limits: Limits) -> None:
        self.limits = limits

    @rule(by=step)
    def time_passes(self, by: int) -> None:
        self.now += by

    @rule(times=st.integers(1, 8))
    def requests(self, times: int) -> None:
        for _ in range(times):
            self.request()

    @rule()
    def request(self) -> None:
        before = self.limiter.dump()
        seen = self.limiter.peek(KEY, self.limits, self.now)
        verdict = self.limiter.admit(KEY, self.limits, self.now)
        assert seen.allowed == verdict.allowed
        after = self.limiter.peek(KEY, self.limits, self.now)
        check_verdict(seen, seen, self.limits, self.now)
        check_verdict(verdict, after, self.limits, self.now)
        if verdict.allowed:
            self.model.times.append(self.now)
            assert remaining_of(after) == {name: left - 1 for name, left in remaining_of(seen).items()}
        else:
            assert verdict == seen
            assert counted(self.limiter, self.now) == counted(loaded(before), self.now)

    @rule()
    def waits_until_reset(self) -> None:
        verdict = self.limiter.peek(KEY, self.limits, self.now)
        if verdict.limit is None:
            return
        if not verdict.allowed and 0 not in bounds(self.limits):
            assert not self.limiter.peek(KEY, self.limits, verdict.reset_ns - 1).allowed
            self.now = verdict.reset_ns
            assert self.limiter.peek(KEY, self.limits, self.now).allowed
            self.request()

    @rule()
    def remaining_rises_at_reset_and_not_before(self) -> None:
        now = self.limiter.peek(KEY, self.limits, self.now)
        for name, bound, _, remaining, reset in now.policies:
            if reset == self.now or bound == 0:
                continue
            fork = loaded(self.limiter.dump())
            assert remaining_of(fork.peek(KEY, self.limits, reset - 1))[name] == remaining
            assert remaining_of(fork.peek(KEY, self.limits, reset))[name] > remaining

    @rule(ago=st.lists(step, max_size=5))
    def a_log_tells_of_the_past(self, ago: list[int]) -> None:
        for back in ago:
            self.limiter.record(KEY, self.now - back)
            self.model.times.append(self.now - back)

    @rule()
    def restarts(self) -> None:
        self.limiter = loaded(self.limiter.dump())

    @rule()
    def restarts_and_recalls_its_keys_one_by_one(self) -> None:
        dump, self.limiter = self.limiter.dump(), Limiter()
        self.limiter.load_later(dump, shift_ns=0, now_ns=self.now)

    @rule()
    def forgets(self) -> None:
        self.limiter.forget(self.now)

    @invariant()
    def counts_what_a_list_of_times_would(self) -> None:
        seen = self.limiter.peek(KEY, Limits(10**6, 10**6, 10**6), self.now)
        for (name, span, bucket), left in zip(WINDOWS, remaining_of(seen).values(), strict=True):
            used = 10**6 - left
            assert self.model.exactly(self.now, span) <= used <= self.model.at_most(self.now, span, bucket), name


def loaded(dump: Dump) -> Limiter:
    limiter = Limiter()
    limiter.load(dump)
    return limiter


def counted(limiter: Limiter, now: int) -> dict[tuple[int, str], list[tuple[int, int]]]:
    """What of a limiter's state still counts, by key and window."""
    left = {
        (key, name): [(last, count) for last, count in buckets if last + span > now]
        for key, windows in limiter.dump().items()
        for (name, span, _), buckets in zip(WINDOWS, windows, strict=True)
    }
    return {place: buckets for place, buckets in left.items() if buckets}


OneKey.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestOneKey = OneKey.TestCase


@given(
    limits=st.builds(Limits, *[st.none() | st.integers(1, 40)] * 3),
    gaps=st.lists(st.sampled_from([0, 1, 10**6, SECOND // 3, SECOND, 30 * SECOND, 700 * SECOND]), max_size=300),
)
@settings(max_examples=200, deadline=None)
def test_no_sliding_window_ever_admits_more_than_its_limit(limits: Limits, gaps: list[int]) -> None:
    limiter, admitted, now = Limiter(), list[int](), START
    for gap in gaps:
        now += gap
        if limiter.admit(KEY, limits, now).allowed:
            admitted.append(now)
    for (_, span, _), bound in zip(WINDOWS, bounds(limits), strict=True):
        for first, time in enumerate(admitted):
            inside = sum(1 for other in admitted[first:] if other < time + span)
            assert bound is None or inside <= bound


def test_the_hundred_and_first_request_in_a_minute_is_refused_until_the_first_leaves() -> None:
    limiter = Limiter()
    for number in range(100):
        verdict = limiter.admit(KEY, DEFAULT, START + number * SECOND // 2)
        assert (verdict.allowed, verdict.limit, verdict.remaining) == (True, 100, 99 - number)
        assert verdict.reset_ns == START + MINUTE
    now = START + 50 * SECOND
    refused = limiter.admit(KEY, DEFAULT, now)
    assert not refused.allowed
    assert (refused.limit, refused.remaining, refused.reset_ns) == (100, 0, START + MINUTE)
    assert not limiter.admit(KEY, DEFAULT, refused.reset_ns - 1).allowed
    assert limiter.admit(KEY, DEFAULT, refused.reset_ns).allowed


def test_of_equal_remainders_the_longer_window_is_told() -> None:
    verdict = Limiter().admit(KEY, Limits(5, 5, 5), START)
    assert verdict.reset_ns == START + DAY


def test_at_a_refusal_the_window_that_frees_last_is_told() -> None:
    limiter = Limiter()
    limiter.admit(KEY, Limits(1, 1, None), START)
    refused = limiter.admit(KEY, Limits(1, 1, 50), START)
    assert (refused.limit, refused.reset_ns) == (1, START + HOUR)
    assert [policy[3:] for policy in refused.policies] == [(0, START + MINUTE), (0, START + HOUR), (49, START + DAY)]


def test_limits_lowered_below_what_is_consumed_refuse_until_enough_has_left() -> None:
    limiter = Limiter()
    for number in range(10):
        limiter.admit(KEY, DEFAULT, START + number * SECOND)
    refused = limiter.admit(KEY, Limits(4, None, None), START + 10 * SECOND)
    assert (refused.remaining, refused.reset_ns) == (0, START + 6 * SECOND + MINUTE)


def test_a_limit_set_later_knows_the_past() -> None:
    limiter = Limiter()
    for _ in range(3):
        assert limiter.admit(KEY, Limits(None, None, None), START).limit is None
    assert not limiter.admit(KEY, Limits(3, None, None), START).allowed
    assert limiter.admit(KEY, Limits(4, None, None), START).remaining == 0


def test_a_limit_of_nothing_admits_nothing() -> None:
    refused = Limiter().admit(KEY, Limits(0, None, None), START)
    assert (refused.allowed, refused.limit, refused.reset_ns - START) == (False, 0, MINUTE)


def test_peeking_at_a_key_leaves_no_trace() -> None:
    limiter = Limiter()
    verdict = limiter.peek(KEY, DEFAULT, START)
    assert (verdict.allowed, verdict.limit, verdict.remaining, verdict.reset_ns) == (True, 100, 100, START)
    assert len(limiter) == 0


def test_keys_do_not_touch_each_other() -> None:
    limiter = Limiter()
    assert limiter.admit(1, Limits(1, 1, 1), START).allowed
    assert limiter.admit(2, Limits(1, 1, 1), START).allowed
    assert not limiter.admit(1, Limits(1, 1, 1), START).allowed


@given(times=st.lists(st.integers(START, START + 2 * HOUR), max_size=60), order=st.randoms())
@settings(deadline=None)
def test_the_state_is_the_same_in_whatever_order_the_past_is_told(times: list[int], order: Random) -> None:
    told, shuffled = Limiter(), Limiter()
    for time in sorted(times):
        told.record(KEY, time)
    order.shuffle(times)
    for time in times:
        shuffled.record(KEY, time)
    now = START + 2 * HOUR
    assert counted(told, now) == counted(shuffled, now)


@given(times=st.lists(st.integers(START - DAY, START), max_size=60))
@settings(deadline=None)
def test_admitting_and_being_told_of_it_give_the_same_state(times: list[int]) -> None:
    admitting, told = Limiter(), Limiter()
    for time in sorted(times):
        admitting.admit(KEY, Limits(None, None, None), time)
        told.record(KEY, time)
    assert counted(admitting, START) == counted(told, START)


@given(
    times=st.lists(st.integers(START - DAY, START), max_size=40),
    shift=st.integers(-2 * DAY, 2 * DAY),
)
@settings(deadline=None)
def test_a_dump_shifted_to_another_clock_counts_at_least_what_is_left(times: list[int], shift: int) -> None:
    source, limiter = Limiter(), Limiter()
    for time in times:
        source.record(KEY, time)
    limiter.load(source.dump(), shift_ns=shift, now_ns=START)
    seen = remaining_of(limiter.peek(KEY, Limits(1000, 1000, 1000), START))
    for name, span, _ in WINDOWS:
        # What the newest of them has left behind on its own clock no longer counts, whatever the other says.
        recent = [time for time in times if time + span > max(times)]
        left = sum(1 for time in recent if START - span < min(time + shift, START))
        assert 1000 - seen[name] >= left


def test_what_has_left_the_day_is_forgotten_a_piece_at_a_time() -> None:
    limiter = Limiter()
    for key in range(10):
        limiter.admit(key, DEFAULT, START + (HOUR if key < 3 else 0))
    for _ in range(8):
        limiter.forget(START + DAY, keys=2)
    assert len(limiter) == 3
    assert limiter.peek(0, DEFAULT, START + DAY).policies[2][3] == 9999


def test_a_key_holds_few_numbers_however_many_requests_it_makes() -> None:
    limiter = Limiter()
    for number in range(300_000):
        limiter.admit(KEY, Limits(None, None, None), START + number * SECOND)
    held = [len(buckets) for buckets in limiter.dump()[KEY]]
    assert [most <= span // bucket + 1 for most, (_, span, bucket) in zip(held, WINDOWS, strict=True)] == [True] * 3


def test_a_short_window_is_told_when_it_frees_after_a_long_one() -> None:
    limiter, limits = Limiter(), Limits(1, 2, None)
    limiter.admit(KEY, limits, START)
    limiter.admit(KEY, limits, START + HOUR - 30 * SECOND)
    refused = limiter.admit(KEY, limits, START + HOUR - SECOND)
    assert (refused.limit, refused.reset_ns) == (1, START + HOUR + 30 * SECOND)


def test_a_dump_never_counts_for_longer_than_from_now_on() -> None:
    source, limiter = Limiter(), Limiter()
    source.record(KEY, START)
    limiter.load(source.dump(), shift_ns=DAY, now_ns=START + SECOND)
    assert limiter.admit(KEY, Limits(1, None, None), START + SECOND).reset_ns == START + SECOND + MINUTE
