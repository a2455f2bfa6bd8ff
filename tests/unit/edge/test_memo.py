"""A memo stays within its budget, and what recurs keeps its place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.edge.memo import Memo


def look(memo: Memo[int, bytes], key: int) -> bytes | None:
    return memo.get(key) or memo.revive(key)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 60))))
def test_the_budget_holds_whatever_is_kept(entries: list[tuple[int, int]]) -> None:
    memo: Memo[int, bytes] = Memo(100, lambda _, value: len(value))
    for key, size in entries:
        memo.keep(key, bytes(size))
        assert look(memo, key) == bytes(size)
        assert sum(map(len, memo.values())) <= 100


def test_what_recurs_stays_and_what_came_once_goes() -> None:
    memo: Memo[int, bytes] = Memo(100, lambda _, value: len(value))
    memo.keep(-1, b"x" * 10)
    for number in range(1000):
        memo.keep(number, b"y" * 10)
        assert look(memo, -1) == b"x" * 10
    assert look(memo, 900) is None


def test_what_is_larger_than_all_is_not_kept() -> None:
    memo: Memo[int, bytes] = Memo(100, lambda _, value: len(value))
    memo.keep(1, b"x" * 101)
    assert look(memo, 1) is None
    assert not memo


def test_what_recurs_is_held_among_much_that_comes_once() -> None:
    memo: Memo[int, bytes] = Memo(100, lambda _, value: len(value))
    for number in range(1000):
        for key, value in ((number, b"y" * 10), (-7, b"x" * 10)):
            if memo.passing:
                memo.passing -= 1
            else:
                memo.notice(key, value)
    assert dict(memo) == {-7: b"x" * 10}


def test_what_came_once_is_forgotten_again() -> None:
    memo: Memo[int, bytes] = Memo(100, lambda _, value: len(value))
    for number in range(200_000):
        memo.notice(number, b"y")
    assert not memo
    assert len(memo._once) <= 4096
