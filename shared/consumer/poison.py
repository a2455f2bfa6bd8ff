"""How much poison is too much. Pure.

What a record can't be taken for is most likely its own fault, or that of whoever is behind it: it is parked, and the others
go on. When much of what comes is poison, whoever it is from, then it is the consumer that must be wrong.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

_WINDOW = 5000


class TooMuchPoison(Exception):  # noqa: N818 - a state of the topic
    """So much can't be taken, of so many, that it is the consumer that must be wrong: it stops rather than park all."""


@dataclass
class Tolerance:
    """Stops a consumer when records of more than `sources` sources, and a larger `share` of those seen, are poison.

    A source is an owner, or a stream where a record names none (`shared.consumer.records.blamed`): however much one of them
    sends, it stops nobody else. Counted over the last five to ten thousand records.
    """

    sources: int = 10
    share: float = 0.5
    _well: AbstractSet[str] = frozenset()
    _hit: AbstractSet[str] = frozenset()
    _well_before: AbstractSet[str] = frozenset()
    _hit_before: AbstractSet[str] = frozenset()
    _records: int = 0

    def allow(self, well: AbstractSet[str], hit: AbstractSet[str], records: int) -> None:
        """Counts so many records: the sources of those taken, and of those to be parked. Raises `TooMuchPoison`."""
        self._well, self._hit, self._records = self._well | well, self._hit | hit, self._records + records
        spoiled = self._hit | self._hit_before
        if hit and len(spoiled) > self.sources:
            seen = spoiled | self._well | self._well_before
            if len(spoiled) > self.share * len(seen):
                raise TooMuchPoison(f"records of {len(spoiled)} of {len(seen)} owners or streams can't be taken")
        if self._records > _WINDOW:
            self._well_before, self._hit_before = self._well, self._hit
            self._well, self._hit, self._records = frozenset(), frozenset(), 0
