"""Records that could not be taken, as they came, with the reason. SQL, but for who calls it.

They are kept for 30 days, within a budget of bytes: beyond it the oldest go, those that are done before the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from shared.consumer.intake import Poison
from shared.consumer.records import text
from shared.kafka import Partition, Record
from shared.postgres import Connection

_KEPT = "30 days"
_BUDGET = 1 << 30
_AT_ONCE = 10_000


async def park(connection: Connection, topics: dict[str, str], poison: Iterable[Poison]) -> None:
    """Puts records aside; those that are already there stay as they are. `topics`: their ids by name."""
    for (topic, number), record, error in poison:
        await connection.execute(
            'INSERT INTO dead_letters (topic_id, topic, partition, "offset", key, value, header_names, header_values, error)'
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [
                *(topics[topic], topic, number, record.offset, record.key, record.value),
                *([text(name or "") for name, _ in record.headers], [value for _, value in record.headers]),
                error,
            ],
        )


async def parked(
    connection: Connection, topic_id: str, records: Collection[tuple[Partition, Record]]
) -> set[tuple[int, int]]:
    """Partition and offset of those of a topic's records that are there."""
    if not records:
        return set()
    rows = await connection.execute(
        'SELECT partition, "offset" FROM dead_letters JOIN unnest(%s::int[], %s::bigint[]) AS wanted (partition, "offset")'
        ' USING (partition, "offset") WHERE topic_id = %s',
        [[partition.partition for partition, _ in records], [record.offset for _, record in records], topic_id],
    )
    return {(row["partition"], row["offset"]) async for row in rows}


async def clean(connection: Connection, budget: int = _BUDGET) -> int:
    """Deletes what is too old, or too much, as long as it is not more than some thousand; how many went."""
    expired = await connection.execute(
        "DELETE FROM dead_letters WHERE id IN"
        " (SELECT id FROM dead_letters WHERE parked_at < now() - %s::interval ORDER BY id LIMIT %s)",
        [_KEPT, _AT_ONCE],
    )
    over = await connection.execute(
        "DELETE FROM dead_letters WHERE id IN (SELECT id FROM ("
        "  SELECT id, sum(size) OVER (ORDER BY done_at IS NOT NULL, id DESC) AS room FROM dead_letters"
        ") AS kept WHERE room > %s ORDER BY id LIMIT %s)",
        [budget, _AT_ONCE],
    )
    return expired.rowcount + over.rowcount
