"""What the publisher sends of marks and totals, on a real database and a Kafka that loses what it has acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import services.usage
from services.usage import store
from services.usage.settings import Settings
from services.usage.worker import Publisher
from shared.events.topics import USAGE_MARKS
from shared.kafka import Partition
from shared.postgres import MIGRATIONS, Pool, connect, migrate, open_pool, transaction
from tests.support.eventually import eventually
from tests.support.fakebroker import FakeBroker
from tests.support.fakeclients import installed

pytestmark = pytest.mark.anyio

PARTITIONS = 6
# `many` are more than two turns.
MANY = 2500


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    await migrate(database, [MIGRATIONS / "consumer", Path(services.usage.__file__).parent / "migrations"])
    async with open_pool(database) as pool:
        yield pool


async def _mark(pool: Pool, logs: int, last: int) -> None:
    async with transaction(pool) as connection:
        await connection.execute(
            "INSERT INTO request_marks (log, partition, last) SELECT 'log-' || n, n %% 6, %s FROM generate_series(1, %s) n"
            " ON CONFLICT (log, partition) DO UPDATE SET last = excluded.last, changed = true",
            [last, logs],
        )


async def _closed(pool: Pool, log: str) -> None:
    async with transaction(pool) as connection:
        await connection.execute("INSERT INTO closed_logs (log, last, partitions) VALUES (%s, 9, 6)", [log])


async def test_marks_that_keep_changing_all_have_their_turn_and_closed_logs_are_not_last(pool: Pool) -> None:
    await _mark(pool, MANY, 1)
    await _closed(pool, "zzz")
    seen: set[tuple[str, int]] = set()
    closed: list[int] = []
    turn = store.Turn()
    async with pool.connection() as connection:
        for number in range(3):
            marks, turn = await store.changed_marks(connection, "request-events", turn, 1000)
            seen |= {(mark.log, mark.partition) for mark in marks if not mark.closed}
            if any(mark.closed for mark in marks):
                closed.append(number)
                assert sorted(mark.partition for mark in marks if mark.closed) == list(range(PARTITIONS))
            # All of them change again before the next turn.
    assert len(seen) == MANY
    assert closed == [0, 1, 2]
    assert turn == store.Turn()


async def test_the_turn_s_query_needs_no_sort_of_all_marks(pool: Pool) -> None:
    await _mark(pool, MANY, 1)
    async with pool.connection() as connection:
        await connection.execute("ANALYZE request_marks")
        plan = await (
            await connection.execute(
                "EXPLAIN SELECT log, partition FROM request_marks WHERE changed AND (log, partition) > ('log-2', 1)"
                " ORDER BY log, partition LIMIT 100"
            )
        ).fetchall()
    text = "\n".join(str(row["QUERY PLAN"]) for row in plan)
    assert "request_marks_changed" in text
    assert "Sort" not in text


def _marks(broker: FakeBroker) -> dict[str, int]:
    found: dict[str, int] = {}
    if USAGE_MARKS.name in broker.topics:
        for values in broker.values(USAGE_MARKS.name).values():
            found |= {event["data"]["log"]: event["data"]["mark"] for event in map(json.loads, filter(None, values))}
    return found


async def test_a_lost_tail_is_published_again_though_an_aborted_attempt_lies_where_it_was(
    pool: Pool, database: str
) -> None:
    with installed(FakeBroker()) as broker:
        publisher = Publisher(Settings(database=database, kafka="fake:9092", partitions=1))
        stop = asyncio.Event()
        running = asyncio.ensure_future(publisher.run(stop))
        try:
            await _mark(pool, 30, 1)
            await eventually(lambda: len(_marks(broker)) == 30)
            await eventually(lambda: _all_published(database))
            partition = Partition(USAGE_MARKS.name, 0)
            broker.lose_tail(partition, broker.log(partition).end - 2)
            assert len(_marks(broker)) == 29
            # One change: an attempt that lengthens the partition as much as it became shorter.
            await _mark(pool, 1, 2)
            await eventually(lambda: len(_marks(broker)) == 30)
            await eventually(lambda: _marks(broker)["log-1"] == 2)
        finally:
            stop.set()
            await asyncio.wait_for(running, 20)


async def _all_published(database: str) -> bool:
    async with await connect(database) as connection:
        row = await (await connection.execute("SELECT count(*) AS n FROM request_marks WHERE changed")).fetchone()
        assert row is not None
        return int(row["n"]) == 0


async def test_all_counters_are_flagged_again_in_steps(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_FLAGGED_AT_ONCE", 100)
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO key_counters (key_id, owner_id, rows, calls, changed)"
            " SELECT 3 * n, 1, 1, 1, n %% 7 = 0 FROM generate_series(1, %s) n",
            [950],
        )
        await store.publish_all_again(connection)
        assert len(await store.changed_usage(connection, 0, 1000)) == 950
