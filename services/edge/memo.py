"""A memo within a budget of bytes, in which what recurs keeps its place whatever else is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_PASSING_MAX = 15
# How many are told from those that came before, by their hashes.
_ONCE_MAX = 4096

Key = TypeVar("Key")
Value = TypeVar("Value")


def by_length(entry: int) -> Callable[[bytes, object], int]:
    """The size of what is known by bytes: as many, twice when the value has them too, and `entry` more."""
    return lambda key, _value: 2 * len(key) + entry


class Memo(dict[Key, Value]):
    """What was worked out, by what it was worked out from: this dict, and behind it an older generation.

    What the older holds comes back when it is asked for; once the younger is full it becomes the older, and what nobody
    asked for meanwhile goes. So a flood of what comes once makes what recurs a look slower now and then, never more.
    `size` is of one entry, in bytes; at most twice the `budget` is held.
    """

    def __init__(self, budget: int, size: Callable[[Key, Value], int]) -> None:
        super().__init__()
        self._budget = budget
        self._size = size
        self._held = 0
        self._older: dict[Key, Value] = {}
        self._once: set[int] = set()
        self.passing = 0
        """How many may still go unnoticed: for the caller to count down."""

    def revive(self, key: Key) -> Value | None:
        """What only the older generation holds; None when it does not either."""
        value = self._older.get(key)
        if value is not None:
            self.keep(key, value)
        return value

    def notice(self, key: Key, value: Value) -> None:
        """Holds `value` if `key` recurs: what comes only once costs no room. To be called when `passing` has become 0, so that
        it costs next to no time either: of all that comes a few are looked at, which ones is chance (the hash), so that no
        pattern escapes for ever.
        """
        number, once = hash(key), self._once
        self.passing = number & _PASSING_MAX
        if number in once or key in self._older:
            self.keep(key, value)
        elif len(once) < _ONCE_MAX:
            once.add(number)
        else:
            once.clear()

    def keep(self, key: Key, value: Value) -> None:
        """Holds `value` (not None) from now on."""
        if key in self:
            self._held -= self._size(key, self.pop(key))
        size = self._size(key, value)
        if self._held + size > self._budget:
            self._older = dict(self)
            self.clear()
            self._held = 0
        if size <= self._budget:
            self._held += size
            self[key] = value
