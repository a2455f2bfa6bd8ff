"""What a service's database knows of the topics that it takes in: offsets, marks, stream versions.

All of it is written in the transaction that stores the events themselves. Each topic has one consumer group a database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from shared.consumer.intake import LogMark, StreamVersion
from shared.kafka import Partition
from shared.postgres import Connection

_CLOSING_LOCK = 7_316_003


class Superseded(Exception):  # noqa: N818 - what happened, not a mistake
    """Another consumer has moved the offsets on: what was read here is its, and what is held here is of yesterday."""


class TopicId(NamedTuple):
    """A topic as it is now: made anew under the same name it has another id."""

    name: str
    id: str
    partitions: int


@dataclass(frozen=True)
class Offset:
    """Up to where a partition was taken, of which topic (its id), and in how many moves."""

    topic_id: str
    next: int
    turn: int

    def moved(self, to: int, topic_id: str | None = None) -> Offset:
        """The offset after one more move."""
        return Offset(topic_id or self.topic_id, to, self.turn + 1)


async def adopt(connection: Connection, cluster: str, topics: Collection[TopicId]) -> None:
    """Gives the topics' ids to offsets that were stored in this cluster before topics were known by them."""
    await connection.execute(
        "UPDATE consumer_offsets AS o SET topic_id = t.id, cluster = NULL, turn = turn + 1"
        " FROM unnest(%s::text[], %s::text[]) AS t (name, id)"
        " WHERE o.topic = t.name AND o.topic_id = '' AND o.cluster = %s",
        [[topic.name for topic in topics], [topic.id for topic in topics], cluster],
    )


async def load_offsets(connection: Connection, partitions: Collection[Partition]) -> dict[Partition, Offset]:
    """What is stored of the partitions; those never taken from are absent."""
    rows = await connection.execute(
        "SELECT topic, partition, topic_id, next_offset, turn FROM consumer_offsets"
        " JOIN unnest(%s::text[], %s::int[]) AS wanted (topic, partition) USING (topic, partition)",
        _columns(partitions),
    )
    return {
        Partition(row["topic"], row["partition"]): Offset(row["topic_id"], row["next_offset"], row["turn"])
        async for row in rows
    }


async def start(connection: Connection, partition: Partition, at: Offset) -> None:
    """Begins with a partition; `Superseded` when somebody did before."""
    started = await connection.execute(
        "INSERT INTO consumer_offsets (topic, partition, topic_id, next_offset, turn) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        [*partition, at.topic_id, at.next, at.turn],
    )
    if started.rowcount != 1:
        raise Superseded(f"{partition.topic}/{partition.partition} was begun by another")


async def advance(connection: Connection, before: Mapping[Partition, Offset], to: Mapping[Partition, Offset]) -> None:
    """Moves the offsets of partitions by compare-and-set: `Superseded` unless all are as they were. This is the fence.

    It comes last in its transaction, after the COPY of a handler: the server waits for the rest of a COPY for ever, and a
    consumer that was stopped in one must not hold what its successor needs. The rows are locked in one order everywhere.
    """
    partitions = sorted(before)
    moved = await connection.execute(
        "WITH locked AS (SELECT o.topic, o.partition, w.to_topic, w.to_offset, w.to_turn FROM consumer_offsets AS o"
        " JOIN unnest(%s::text[], %s::int[], %s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[])"
        " AS w (topic, partition, topic_id, next_offset, turn, to_topic, to_offset, to_turn) ON o.topic = w.topic"
        " AND o.partition = w.partition AND o.topic_id = w.topic_id AND o.next_offset = w.next_offset AND o.turn = w.turn"
        " ORDER BY o.topic, o.partition FOR UPDATE OF o)"
        " UPDATE consumer_offsets AS o SET topic_id = to_topic, next_offset = to_offset, turn = to_turn, moved_at = now()"
        " FROM locked WHERE o.topic = locked.topic AND o.partition = locked.partition",
        [*_columns(partitions), *_offsets(before[p] for p in partitions), *_offsets(to[p] for p in partitions)],
    )
    if moved.rowcount != len(partitions):
        raise Superseded("the offsets are not those of before")


async def tell_again(connection: Connection, partition: int) -> None:
    """Counts a partition's marks as changed: whoever reads published marks learns its offset from them."""
    await connection.execute("UPDATE request_marks SET changed = true WHERE partition = %s", [partition])


async def load_marks(connection: Connection, keys: Collection[tuple[str, int]]) -> dict[tuple[str, int], LogMark]:
    """The marks of (log, partition); of a log that nobody has seen, its beginning."""
    rows = await connection.execute(
        "SELECT log, partition, m.last, m.gaps, m.closed, c.log IS NOT NULL AS gone"
        " FROM unnest(%s::text[], %s::int[]) AS wanted (log, partition)"
        " LEFT JOIN request_marks m USING (log, partition) LEFT JOIN closed_logs c USING (log)",
        [[log for log, _ in keys], [partition for _, partition in keys]],
    )
    return {
        (row["log"], row["partition"]): LogMark(gone=row["gone"])
        if row["gone"] or row["last"] is None
        else LogMark(row["last"], _pairs(row["gaps"]), row["closed"])
        async for row in rows
    }


async def store_marks(connection: Connection, marks: Mapping[tuple[str, int], LogMark], partitions: int) -> None:
    """Stores the marks that changed; a log that is closed in all `partitions` without a gap collapses into one row."""
    changed = sorted(key for key, mark in marks.items() if mark.changed)
    if not changed:
        return
    # One statement, as everywhere here: between those of a pipeline (executemany) the server has no deadline for a client
    # that was stopped, and keeps its locks.
    await connection.execute(
        "INSERT INTO request_marks (log, partition, last, gaps, gap_since, closed)"
        " SELECT log, partition, last, gaps::bigint[], CASE WHEN gaps <> '{}' THEN now() END, closed"
        " FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::text[], %s::boolean[]) AS m (log, partition, last, gaps, closed)"
        " ON CONFLICT (log, partition) DO UPDATE SET last = excluded.last, gaps = excluded.gaps, closed = excluded.closed,"
        " changed = true, gap_since = CASE"
        " WHEN excluded.gap_since IS NOT NULL THEN coalesce(request_marks.gap_since, excluded.gap_since) END",
        [
            [log for log, _ in changed],
            [partition for _, partition in changed],
            [marks[key].last for key in changed],
            ["{" + ",".join(f"{low},{high}" for low, high in marks[key].gaps) + "}" for key in changed],
            [marks[key].closed for key in changed],
        ],
    )
    complete = sorted({key[0] for key in changed if marks[key].closed and not marks[key].gaps})
    for log in complete:
        await _collapse(connection, log, partitions)


async def _collapse(connection: Connection, log: str, partitions: int) -> None:
    # Without the lock, two consumers that take the last two closing records at once would each miss the other's.
    await connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_CLOSING_LOCK, log])
    collapsed = await connection.execute(
        "INSERT INTO closed_logs (log, last, partitions) SELECT log, max(last), %s FROM request_marks WHERE log = %s"
        " GROUP BY log HAVING count(*) = %s AND bool_and(closed AND gaps = '{}') ON CONFLICT DO NOTHING",
        [partitions, log, partitions],
    )
    if collapsed.rowcount:
        await connection.execute("DELETE FROM request_marks WHERE log = %s", [log])


async def load_versions(
    connection: Connection, topic: str, streams: Collection[str]
) -> defaultdict[str, StreamVersion]:
    """How far the streams are taken; of those never seen, their beginning."""
    rows = await connection.execute(
        "SELECT stream, version, unread FROM stream_versions WHERE topic = %s AND stream = ANY(%s)",
        [topic, list(streams)],
    )
    return defaultdict(
        StreamVersion, {row["stream"]: StreamVersion(row["version"], row["unread"]) async for row in rows}
    )


async def store_versions(connection: Connection, topic: str, versions: Mapping[str, StreamVersion]) -> None:
    """Stores what changed of the streams' versions."""
    changed = {stream: held for stream, held in versions.items() if held.changed}
    await connection.execute(
        "INSERT INTO stream_versions (topic, stream, version, unread)"
        " SELECT %s, * FROM unnest(%s::text[], %s::bigint[], %s::int[])"
        " ON CONFLICT (topic, stream) DO UPDATE SET version = excluded.version, unread = excluded.unread",
        [
            topic,
            list(changed),
            [held.version for held in changed.values()],
            [held.unread for held in changed.values()],
        ],
    )


async def open_gaps(connection: Connection) -> tuple[int, float]:
    """How many marks have open gaps, and for how many seconds the oldest has been open."""
    row = await (
        await connection.execute(
            "SELECT count(*) AS count, coalesce(extract(epoch FROM now() - min(gap_since)), 0)::float AS age"
            " FROM request_marks WHERE gap_since IS NOT NULL"
        )
    ).fetchone()
    return (row["count"], row["age"]) if row else (0, 0.0)


def _columns(partitions: Collection[Partition]) -> list[list[object]]:
    return [[partition.topic for partition in partitions], [partition.partition for partition in partitions]]


def _offsets(offsets: Iterable[Offset]) -> list[list[object]]:
    rows = list(offsets)
    return [[row.topic_id for row in rows], [row.next for row in rows], [row.turn for row in rows]]


def _pairs(flat: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))
