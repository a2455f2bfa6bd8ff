"""The only SQL of the usage service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from services.usage.domain import Count
from shared.events.requests import Decision, RequestEvent, UsageMark
from shared.postgres import BinaryRows, Connection
from shared.relay.checkpoint import Written

_FLAGGED_AT_ONCE = 10_000
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


@dataclass(frozen=True)
class Usage:
    """A key's counters as they are published: the data of `shared.events.requests.KeyUsage`."""

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
        async with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
            await copy.write(self._rows.encoded())


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
    """Adds events to the log and to their keys' counters."""
    await rows.store(connection)
    # Sorted by key, so that two consumers lock the counters in one order.
    counted = sorted(counts.items())
    await connection.execute(
        "INSERT INTO key_counters AS c (key_id, owner_id, rows, calls, last_used)"
        " SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[])"
        " ON CONFLICT (key_id) DO UPDATE SET rows = c.rows + excluded.rows, calls = c.calls + excluded.calls,"
        " last_used = greatest(c.last_used, excluded.last_used), changed = true",
        [
            [key for key, _ in counted],
            [added.owner_id for _, added in counted],
            [added.rows for _, added in counted],
            [added.calls for _, added in counted],
            [added.last_used for _, added in counted],
        ],
    )


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
    """Flags everything for publication: Kafka has lost some of it.

    Counters in short steps, each in the order in which consumers lock them: those go on meanwhile.
    """
    last: int | None = 0
    while last is not None:
        cursor = await connection.execute(
            "WITH step AS (SELECT key_id FROM key_counters WHERE key_id > %s ORDER BY key_id LIMIT %s FOR UPDATE),"
            " flagged AS (UPDATE key_counters c SET changed = true FROM step WHERE c.key_id = step.key_id AND NOT changed)"
            " SELECT max(key_id) AS last FROM step",
            [last, _FLAGGED_AT_ONCE],
        )
        row = await cursor.fetchone()
        last = row["last"] if row else None
    await connection.execute("UPDATE request_marks SET changed = true")
    await connection.execute("UPDATE closed_logs SET changed = true")


async def changed_usage(connection: Connection, after: int, limit: int) -> list[Usage]:
    """Counters that changed since they were published, of keys after one, by key."""
    query = (
        "SELECT key_id, owner_id, calls AS usage_count, last_used FROM key_counters"
        " WHERE changed AND key_id > %s ORDER BY key_id LIMIT %s"
    )
    return [Usage(**row) async for row in await connection.execute(query, [after, limit])]


async def usage_published(connection: Connection, published: Sequence[Usage]) -> None:
    """Clears the flags of counters that are still as published.

    Passing over those that are being changed: whoever waits for a row here while it holds another can deadlock.
    """
    await connection.execute(
        "UPDATE key_counters SET changed = false WHERE key_id IN ("
        " SELECT c.key_id FROM key_counters c"
        " JOIN unnest(%s::bigint[], %s::bigint[]) AS p (key_id, calls) ON c.key_id = p.key_id AND c.calls = p.calls"
        " FOR UPDATE OF c SKIP LOCKED)",
        [[row.key_id for row in published], [row.usage_count for row in published]],
    )


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
