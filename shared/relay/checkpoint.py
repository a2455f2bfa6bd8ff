"""How far a relay is, as its database remembers it. Pure.

The checkpoint says: everything up to `position` is in Kafka, and each partition in `written.offsets` is whole: its last
record of before lies there. A partition that is missing in it is not whole: it is new, or was being filled again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shared.kafka import Partition


@dataclass(frozen=True)
class Written:
    """What was written to Kafka: into which topics (their ids, by name), and by partition the offset after the last
    committed record; offsets of a topic that has another id now mean nothing."""

    topics: Mapping[str, str] = field(default_factory=dict)
    offsets: Mapping[Partition, int] = field(default_factory=dict)

    @classmethod
    def of(cls, topics: Mapping[str, str], named: Mapping[str, int]) -> Written:
        """From what a table holds (`named`)."""
        places = {name: name.rsplit("/", 1) for name in named}
        return cls(topics, {Partition(places[name][0], int(places[name][1])): named[name] for name in named})

    def named(self) -> dict[str, int]:
        """The offsets by the partitions' names: topic/number."""
        return {f"{partition.topic}/{partition.partition}": offset for partition, offset in self.offsets.items()}

    def within(self, topics: Mapping[str, str]) -> Written:
        """What of it still counts where the topics have these ids."""
        same = {name for name, known in topics.items() if self.topics.get(name) == known}
        return Written(topics, {p: offset for p, offset in self.offsets.items() if p.topic in same})

    def moved(self, ends: Mapping[Partition, int]) -> Written:
        """After a transaction that ended there."""
        return replace(self, offsets={**self.offsets, **ends})


@dataclass(frozen=True)
class Checkpoint:
    """The row of the table `relay`.

    `generation` counts the times that it was begun to fill partitions again. `streams` has for each partition how many
    streams' states lie in it (None: they were not counted yet): all that began up to `position` but those that ended up
    to `retired` and whose states were deleted.
    """

    position: int = 0
    written: Written = field(default_factory=Written)
    generation: int = 0
    streams: tuple[int, ...] | None = None
    retired: int = 0

    def counted(self, began: Iterable[int] = (), retired: Iterable[int] = ()) -> tuple[int, ...]:
        """The counts when streams of these partitions, one by one, were added and taken away."""
        assert self.streams is not None
        counts = list(self.streams)
        for number in began:
            counts[number] += 1
        for number in retired:
            counts[number] -= 1
        return tuple(counts)
