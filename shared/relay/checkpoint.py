"""How far a relay is, as its database remembers it, and what a look at the topics makes of that.

The checkpoint says: everything up to `position` is in Kafka, and each partition in `offsets` is whole and ends at or after
its offset there. A partition that is missing in it is not whole: it is new, or was being filled again. `generation`
counts the times that it was begun to fill partitions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec
from psycopg.types.json import Jsonb

from shared.events.topics import Topic
from shared.kafka import KafkaUnavailable, Partition, Reader
from shared.postgres import Connection


@dataclass(frozen=True)
class Checkpoint:
    """The row of the table `relay`, for the Kafka cluster that it was written for."""

    position: int
    cluster: str
    offsets: Mapping[Partition, int]
    generation: int = 0

    @classmethod
    async def load(cls, connection: Connection, cluster: str) -> Checkpoint:
        """The checkpoint; without offsets when it was another cluster's."""
        row = await (await connection.execute("SELECT position, cluster, offsets, generation FROM relay")).fetchone()
        assert row is not None
        offsets = row["offsets"] if row["cluster"] == cluster else {}
        held = {_partition(name): offset for name, offset in offsets.items()}
        return cls(row["position"], cluster, held, row["generation"])

    async def moved(self, connection: Connection, position: int, offsets: Mapping[Partition, int]) -> Checkpoint:
        """Stores and returns the next one; `KafkaUnavailable` when another relay has moved it meanwhile."""
        return await self._stored(connection, Checkpoint(position, self.cluster, offsets, self.generation))

    async def without(self, connection: Connection, lost: Collection[Partition]) -> Checkpoint:
        """As `moved`, at the same position: these partitions count as not whole, and a new generation begins."""
        whole = {partition: offset for partition, offset in self.offsets.items() if partition not in lost}
        return await self._stored(connection, Checkpoint(self.position, self.cluster, whole, self.generation + 1))

    async def _stored(self, connection: Connection, following: Checkpoint) -> Checkpoint:
        offsets = following.offsets
        named = {f"{partition.topic}/{partition.partition}": offset for partition, offset in offsets.items()}
        saved = await connection.execute(
            "UPDATE relay SET position = %s, cluster = %s, offsets = %s, generation = %s"
            " WHERE position = %s AND generation = %s",
            [following.position, self.cluster, Jsonb(named), following.generation, self.position, self.generation],
        )
        if saved.rowcount != 1:
            raise KafkaUnavailable("the checkpoint was moved by another relay")
        return following


def _partition(name: str) -> Partition:
    topic, number = name.rsplit("/", 1)
    return Partition(topic, int(number))


class _Placed(msgspec.Struct):
    id: str
    position: int = 0


@dataclass(frozen=True)
class Survey:
    """What the topics hold: where each partition ends, which are not whole, and the record of each that is furthest on.

    A partition that is not whole holds the beginning of what it should, so `last` is where to go on from.
    """

    ends: Mapping[Partition, int]
    lost: frozenset[Partition]
    last: Mapping[Partition, _Placed]

    def position(self, partition: Partition) -> int:
        """The highest position of the log that was read in the partition; 0 for none."""
        return self.last[partition].position if partition in self.last else 0


async def survey(bootstrap: str, topics: list[Topic], checkpoint: Checkpoint) -> Survey:
    """Reads what lies behind the checkpoint, and partitions that are not whole from their beginning."""
    reader = await Reader.open(bootstrap, [topic.name for topic in topics])
    try:
        bounds = await reader.bounds(reader.assignment())
        ends = {partition: end for partition, (_, end) in bounds.items()}
        held = checkpoint.offsets
        lost = frozenset(p for p, end in ends.items() if p not in held or end < held[p])
        for partition, (begin, _) in bounds.items():
            reader.seek(partition, begin if partition in lost else max(begin, held[partition]))
        last: dict[Partition, _Placed] = {}
        while any([await reader.position(partition) < end for partition, end in ends.items()]):
            for partition, records in (await reader.fetch(timeout_ms=200)).items():
                read = [msgspec.json.decode(record.value, type=_Placed) for record in records if record.value]
                furthest = max(read, key=lambda placed: placed.position, default=None)
                if furthest and furthest.position >= (last[partition].position if partition in last else 0):
                    last[partition] = furthest
        return Survey(ends, lost, last)
    finally:
        await reader.close()


async def contradiction(connection: Connection, topic: Topic, found: Survey, head: int) -> str | None:
    """In words, what Kafka holds that the log does not: positions beyond its end, or another event at a position.

    Either means that the database was restored to an older state: its positions would be, or were, given out twice.
    """
    furthest = max((placed.position for placed in found.last.values()), default=0)
    if furthest > head:
        return f"Kafka holds position {furthest}, the log ends at {head}"
    events = [placed for partition, placed in found.last.items() if partition.topic == topic.name]
    query = "SELECT position, event_id::text AS id FROM events WHERE position = ANY(%s)"
    rows = await (await connection.execute(query, [[placed.position for placed in events]])).fetchall()
    own = {row["position"]: row["id"] for row in rows}
    other = [placed.position for placed in events if own.get(placed.position) != placed.id]
    return f"Kafka and the log hold different events at position {min(other)}" if other else None
