"""The only SQL of the usage service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from services.usage.domain import Count
from shared.events.requests import Decision, RequestEvent, UsageMark
from shared.postgres import Bigints, BinaryRows, Connection
from shared.relay.checkpoint import Written

_TOLD_AT_ONCE = 10_000
_COPY = (
    "COPY request_log (key_id, owner_id, time, call, status_code, response_time, endpoint, method, decision, via, route,"
    " key_version, edge, request_id, correlation_id, client_address, source, sequence) FROM STDIN (FORMAT BINARY)"
)
_TYPES = ["int8", "int8", "timestamptz", "bool", "int2", "float8", *["text"] * 5, "int8", *["text"] * 5, "int8"]
_LAST_CALLS = """
SELECT id, endpoint, method, status_code, response_time, time, request_id, decision
FROM request_log WHERE key_id = %s AND call ORDER BY time DESC, id DESC LIMIT %s
"""
# Calls and others, each in the order of the index from where it begins, merged: no sort, however many there are.
_REQUESTS = """
SELECT id, endpoint, method, status_code, response_time, time, request_id, decision FROM (
    (SELECT * FROM request_log WHERE key_id = %(key)s AND call AND (time, id) < (%(time)s::timestamptz, %(id)s)
     ORDER BY time DESC, id DESC LIMIT %(upto)s)
    UNION ALL
    (SELECT * FROM request_log WHERE key_id = %(key)s AND NOT call AND (time, id) < (%(time)s::timestamptz, %(id)s)
     ORDER BY time DESC, id DESC LIMIT %(upto)s)
) AS merged ORDER BY time DESC, id DESC LIMIT %(size)s OFFSET %(offset)s
"""
# One statement, one moment: an offset newer than its mark would tell an edge that a record is lost.
_CHANGED_MARKS = """
SELECT m.*, coalesce(o.next_offset, 0) AS next_offset FROM (
    (SELECT log, partition, last AS mark, gaps, false AS closed FROM request_marks
        WHERE changed AND (log, partition) > (%(log)s, %(partition)s) ORDER BY log, partition LIMIT %(marks)s)
    UNION ALL
    SELECT log, n, last, '{}', true FROM (
        SELECT * FROM closed_logs WHERE changed AND log > %(closed)s ORDER BY log LIMIT %(logs)s
    ) AS ended, generate_series(0, partitions - 1) AS n
) AS m LEFT JOIN consumer_offsets o ON o.topic = %(topic)s AND o.partition = m.partition ORDER BY closed, log, partition
"""


_ADD = """
WITH told AS (INSERT INTO changed_keys (keys) VALUES (%(keys)s))
UPDATE key_counters AS c
SET rows = c.rows + a.rows, calls = c.calls + a.calls, last_used = greatest(c.last_used, a.last_used)
FROM unnest(%(keys)s, %(rows)s, %(calls)s, %(last_used)b::timestamptz[]) AS a (key_id, rows, calls, last_used)
WHERE c.key_id = a.key_id
"""
# Those that are not there. One that another consumer begins at the same time is added to.
_BEGIN = """
INSERT INTO key_counters AS c (key_id, owner_id, rows, calls, last_used)
SELECT * FROM unnest(%(keys)s, %(owners)s, %(rows)s, %(calls)s, %(last_used)b::timestamptz[])
    AS a (key_id, owner_id, rows, calls, last_used)
WHERE NOT EXISTS (SELECT FROM key_counters AS k WHERE k.key_id = a.key_id)
ON CONFLICT (key_id) DO UPDATE SET rows = c.rows + excluded.rows, calls = c.calls + excluded.calls,
    last_used = greatest(c.last_used, excluded.last_used)
"""
# By the size that is known without reading the keys.
_TOLD = """
SELECT id FROM (
    SELECT id, sum(pg_column_size(keys)) OVER (ORDER BY id) - pg_column_size(keys) AS before
    FROM (SELECT id, keys FROM changed_keys ORDER BY id LIMIT %s) AS oldest
) AS measured WHERE before < %s
"""
_USAGE = "SELECT key_id, owner_id, calls AS usage_count, last_used FROM key_counters WHERE key_id = ANY(%s)"
_CHANGED_AT_ONCE = (100_000, 8 * 4_000_000)
"""Batches and bytes of their keys: to look through these takes some seconds, so a pass begins however much there is."""


@dataclass(frozen=True)
class Turn:
    """Whose turn it is: the marks after (log, partition), and the closed logs after `closed`."""

    log: str = ""
    partition: int = -1
    closed: str = ""


@dataclass(frozen=True)
class Request:
    """A metered request as it is shown."""

    id: int
    endpoint: str
    method: str
    status_code: int
    response_time: float
    time: datetime
    request_id: str
    decision: Decision


class Usage(msgspec.Struct, frozen=True, gc=False):
    """A key's counters as they are published: the data of `shared.events.requests.KeyUsage`. There are many of them."""

    key_id: int
    owner_id: int
    usage_count: int
    last_used: datetime | None


class Rows:
    """Rows of the log as PostgreSQL's COPY takes them."""

    def __init__(self) -> None:
        self._rows = BinaryRows(_TYPES)

    def add(self, events: Sequence[RequestEvent]) -> None:
        """Appends events."""
        self._rows.extend(map(_row, events))

    async def store(self, connection: Connection) -> None:
        """Adds them to the log."""
        await self._rows.store(connection, _COPY)


def _row(event: RequestEvent) -> tuple[Any, ...]:
    data = event.data
    return (
        data.key_id,
        data.owner_id,
        event.time,
        data.is_call,
        data.status_code,
        data.response_time,
        data.endpoint,
        data.method,
        data.decision,
        data.via,
        data.route,
        data.key_version,
        data.edge,
        data.request_id,
        data.correlation_id,
        data.client_address,
        event.source,
        data.sequence,
    )


async def record(connection: Connection, rows: Rows, counts: dict[int, Count]) -> None:
    """Adds events to the log and to their keys' counters, and tells of those that they change."""
    await rows.store(connection)
    # Sorted by key, so that two consumers lock the counters in one order.
    keys = Bigints(sorted(counts))
    added = [counts[key] for key in keys]
    values: dict[str, Any] = {
        "keys": keys,
        "rows": Bigints([each.rows for each in added]),
        "calls": Bigints([each.calls for each in added]),
        "last_used": [each.last_used for each in added],
    }
    updated = await connection.execute(_ADD, values)
    if updated.rowcount < len(keys):
        await connection.execute(_BEGIN, values | {"owners": Bigints([each.owner_id for each in added])})


async def owner_and_rows(connection: Connection, key_id: int) -> tuple[int, int] | None:
    """Whose the key is and how many requests it has made; None before the first."""
    query = "SELECT owner_id, rows FROM key_counters WHERE key_id = %s"
    row = await (await connection.execute(query, [key_id])).fetchone()
    return None if row is None else (row["owner_id"], row["rows"])


async def last_calls(connection: Connection, key_id: int, limit: int) -> list[Request]:
    """The key's last calls, newest first."""
    rows = await connection.execute(_LAST_CALLS, [key_id, limit])
    return [Request(**row) async for row in rows]


async def requests(connection: Connection, key_id: int, before: int | None, offset: int, size: int) -> list[Request]:
    """A page of the key's requests, newest first: of those older than the one with the id `before`, or of all.

    None when the key has no such request: it is not the key's, or gone with all that were older.
    """
    values: dict[str, Any] = {
        "key": key_id,
        "upto": offset + size,
        "size": size,
        "offset": offset,
        "time": "infinity",
        "id": 0,
    }
    if before is not None:
        query = "SELECT time FROM request_log WHERE id = %s AND key_id = %s"
        row = await (await connection.execute(query, [before, key_id])).fetchone()
        if row is None:
            return []
        values |= {"time": row["time"], "id": before}
    return [Request(**row) async for row in await connection.execute(_REQUESTS, values)]


async def publication(connection: Connection) -> tuple[int, Written]:
    """The epoch of what is published, and what was written of it to Kafka."""
    row = await (await connection.execute("SELECT epoch, topics, offsets FROM publication")).fetchone()
    assert row is not None
    return row["epoch"], Written.of(row["topics"], row["offsets"])


async def save_publication(connection: Connection, written: Written) -> None:
    """Remembers what was written to Kafka."""
    query = "UPDATE publication SET topics = %s, offsets = %s"
    await connection.execute(query, [Jsonb(dict(written.topics)), Jsonb(written.named())])


async def publish_all_again(connection: Connection) -> None:
    """Has everything published again: Kafka has lost some of it. In short steps: who counts goes on meanwhile."""
    last: int | None = 0
    while last is not None:
        cursor = await connection.execute(
            "WITH step AS (SELECT key_id FROM key_counters WHERE key_id > %s ORDER BY key_id LIMIT %s),"
            " told AS (INSERT INTO changed_keys (keys) SELECT array_agg(key_id) FROM step HAVING count(*) > 0)"
            " SELECT max(key_id) AS last FROM step",
            [last, _TOLD_AT_ONCE],
        )
        row = await cursor.fetchone()
        last = row["last"] if row else None
    await connection.execute("UPDATE request_marks SET changed = true")
    await connection.execute("UPDATE closed_logs SET changed = true")


async def changed_usage(connection: Connection, size: int) -> AsyncGenerator[list[Usage]]:
    """Counters that have changed, the oldest changes first as many as one pass takes, in parts, of which the last is empty.

    Whoever asks for another part has published those before.

    Then it is forgotten that they had changed; those that change again meanwhile are told of again. `connection`
    commits each statement: the keys wait in a cursor of the server, and nothing is held up by a long transaction.
    """
    told = [row["id"] async for row in await connection.execute(_TOLD, _CHANGED_AT_ONCE)]
    if not told:
        return
    async with connection.cursor("changed_keys", withhold=True) as keys:
        await keys.execute("SELECT DISTINCT unnest(keys) AS key_id FROM changed_keys WHERE id = ANY(%s)", [told])
        while part := await keys.fetchmany(size):
            rows = await connection.execute(_USAGE, [Bigints([row["key_id"] for row in part])])
            yield [Usage(**row) for row in await rows.fetchall()]
    yield []
    await connection.execute("DELETE FROM changed_keys WHERE id = ANY(%s)", [told])


async def changed_marks(connection: Connection, topic: str, turn: Turn, limit: int) -> tuple[list[UsageMark], Turn]:
    """Marks of request logs that changed since they were published, and whose turn it is next.

    At most `limit` of open logs, and a tenth as many closed logs, of each one mark for each partition: neither waits for
    the other, and none for ever while others keep changing.
    """
    logs = max(1, limit // 10)
    values = {"topic": topic, "log": turn.log, "partition": turn.partition, "closed": turn.closed}
    rows = await (await connection.execute(_CHANGED_MARKS, values | {"marks": limit, "logs": logs})).fetchall()
    marks = [UsageMark(**row | {"gaps": tuple(zip(row["gaps"][::2], row["gaps"][1::2], strict=True))}) for row in rows]
    still = [mark for mark in marks if not mark.closed]
    closed = list(dict.fromkeys(mark.log for mark in marks if mark.closed))
    following = Turn(closed=closed[-1] if len(closed) == logs else "")
    if len(still) == limit:
        following = replace(following, log=still[-1].log, partition=still[-1].partition)
    return marks, following


async def marks_published(connection: Connection, published: Sequence[UsageMark]) -> None:
    """Clears the flags of marks that are still as published, and of closed logs whose every partition was."""
    if not published:
        return
    marks = [mark for mark in published if not mark.closed]
    await connection.execute(
        "UPDATE request_marks SET changed = false WHERE (log, partition) IN ("
        " SELECT m.log, m.partition FROM request_marks m"
        " JOIN unnest(%s::text[], %s::int[], %s::bigint[], %s::text[]) AS p (log, partition, last, gaps)"
        " ON m.log = p.log AND m.partition = p.partition AND m.last = p.last AND m.gaps = p.gaps::bigint[]"
        " FOR UPDATE OF m SKIP LOCKED)",
        [
            [mark.log for mark in marks],
            [mark.partition for mark in marks],
            [mark.mark for mark in marks],
            ["{" + ",".join(f"{low},{high}" for low, high in mark.gaps) + "}" for mark in marks],
        ],
    )
    closed = [mark.log for mark in published if mark.closed]
    await connection.execute(
        "UPDATE closed_logs SET changed = false WHERE (log, partitions) IN"
        " (SELECT log, count(*) FROM unnest(%s::text[]) AS log GROUP BY log)",
        [closed],
    )
