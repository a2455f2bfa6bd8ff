"""A look at the topics: whether what was written to them is still there, and whether they hold more than that.

Where a partition ends does not tell: an attempt that was aborted lengthens it too, also one that found it shorter than it
was. So what is looked for is the last committed record, where it was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from shared.kafka import KafkaUnavailable, Partition, Reader, Record, identify
from shared.relay.checkpoint import Written

_LOOK = 10.0


class Placed(msgspec.Struct):
    """Where in its service's log a record comes from; 0 for one that says nothing of it."""

    id: str
    position: int = 0


_decode = msgspec.json.Decoder(Placed).decode


@dataclass(frozen=True)
class Survey:
    """What the topics hold. `whole`: the topics' ids, and the offset after the last committed record of each partition
    that is whole; `ends`: the same of all partitions that were read.

    A partition in `lost` holds the beginning of what it should, so `last`, the record that is furthest on, is where to
    go on from. Of one that is whole, `last` looks at nothing before the last record that was known.
    """

    whole: Written
    lost: frozenset[Partition]
    ends: Mapping[Partition, int]
    last: Mapping[Partition, Placed]

    def position(self, partition: Partition) -> int:
        """The highest position of the log that was read in the partition; 0 for none."""
        return self.last[partition].position if partition in self.last else 0


async def survey(bootstrap: str, topics: Sequence[str], written: Written, *, known_only: bool = False) -> Survey:
    """Reads what lies at and behind the last records written, and partitions that are not whole from their beginning.

    `known_only`: only whether the partitions in `written` are whole; others are not lost, and none is read from there.
    """
    held = written.within(await _ids(bootstrap, topics))
    gone = frozenset(written.offsets.keys() - held.offsets.keys())
    reader = await Reader.open(bootstrap, topics)
    try:
        bounds = await reader.bounds(reader.assignment())
        starts = {p: min(max(begin, held.offsets.get(p, end) - 1), end) for p, (begin, end) in bounds.items()}
        found = _Reading()
        await found.read(reader, starts, bounds)
        here = {p for p, offset in held.offsets.items() if p in bounds and found.ends.get(p, 0) >= offset}
        lost = frozenset(held.offsets.keys() | gone if known_only else bounds.keys()) - here
        if not known_only:
            await found.read(reader, {p: bounds[p][0] for p in lost}, bounds)
        ends = {partition: found.ends.get(partition, 0) for partition in bounds}
        return Survey(Written(held.topics, {p: ends[p] for p in here}), lost, ends, found.last)
    finally:
        await reader.close()


class _Reading:
    def __init__(self) -> None:
        self.ends: dict[Partition, int] = {}
        self.last: dict[Partition, Placed] = {}

    async def read(
        self, reader: Reader, starts: Mapping[Partition, int], bounds: Mapping[Partition, tuple[int, int]]
    ) -> None:
        """Reads from there to the end."""
        for partition, start in starts.items():
            reader.seek(partition, start)
        async for found in reader.read_up_to({partition: bounds[partition][1] for partition in starts}):
            for partition, records in found.items():
                self.ends[partition] = records[-1].offset + 1
                placed = filter(None, [_placed(record) for record in records])
                furthest = max(placed, key=lambda each: each.position, default=None)
                if furthest and furthest.position >= (self.last[partition].position if partition in self.last else 0):
                    self.last[partition] = furthest


def _placed(record: Record) -> Placed | None:
    try:
        return _decode(record.value) if record.value else None
    except msgspec.DecodeError:
        return None  # nobody's here


async def watch(bootstrap: str, written: Callable[[], Written]) -> None:
    """Looks every ten seconds, for ever, whether the topics are those written to, and end no earlier than that.

    Raises `KafkaUnavailable` when they don't: who writes nothing at the moment would not notice. It is enough to compare
    ends, since nobody else lengthens a partition while `written` goes on; twice, since a commit returns before its end
    is seen by readers.
    """
    short: dict[Partition, int] = {}
    while True:
        await asyncio.sleep(_LOOK)
        held = written()
        if await _ids(bootstrap, list(held.topics)) != held.topics:
            raise KafkaUnavailable("a topic was made anew")
        reader = await Reader.open(bootstrap, list(held.topics))
        try:
            ends = {p: end for p, (_, end) in (await reader.bounds(reader.assignment())).items()}
        finally:
            await reader.close()
        if still := [str(p) for p, offset in short.items() if ends.get(p, 0) < offset]:
            raise KafkaUnavailable(f"shorter than before: {', '.join(still)}")
        short = {p: offset for p, offset in held.offsets.items() if ends.get(p, 0) < offset}


async def _ids(bootstrap: str, topics: Sequence[str]) -> dict[str, str]:
    found = (await identify(bootstrap, topics)).topics
    if missing := [topic for topic in topics if topic not in found]:
        raise KafkaUnavailable(f"no topic {', '.join(missing)} yet")
    return {name: topic.id for name, topic in found.items()}
