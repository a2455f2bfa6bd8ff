"""What the publisher sends of marks and totals, on a real database and a Kafka that loses what it has acknowledged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import services.usage
from services.usage import store
from services.usage.domain import Count
from services.usage.settings import Settings
from services.usage.worker import Publisher
from shared.events.topics import KEY_USAGE, USAGE_MARKS
from shared.kafka import KafkaUnavailable, Partition, Producer
from shared.postgres import MIGRATIONS, Connection, Pool, connect, migrate, open_pool, transaction
from tests.support.eventually import eventually
from tests.support.fakebroker import FakeBroker
from tests.support.fakeclients import installed
from tests.support.migrations import up_to

pytestmark = pytest.mark.anyio

PARTITIONS = 6
NOON = datetime(2024, 3, 21, 12, tzinfo=UTC)
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


@asynccontextmanager
async def _publishing(database: str, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[None]:
    """A publisher runs meanwhile."""
    publisher = Publisher(Settings(database=database, kafka="fake:9092", partitions=1))
    publisher._clock = clock
    stop = asyncio.Event()
    running = asyncio.ensure_future(publisher.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(running, 20)


async def test_a_lost_tail_is_published_again_though_an_aborted_attempt_lies_where_it_was(
    pool: Pool, database: str
) -> None:
    with installed(FakeBroker()) as broker:
        async with _publishing(database):
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


async def test_totals_are_told_of_also_when_kafka_takes_long_and_marks_change_all_the_time(
    pool: Pool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, sent, transaction = 0.0, 0, Producer.transaction

    async def slow(self: Producer, *args: Any) -> dict[Partition, int]:
        nonlocal now, sent
        now, sent = now + 12.0, sent + 1
        await _mark(pool, 1, sent)
        async with pool.connection() as connection:
            await _counted(connection, range(1, 2))
        return await transaction(self, *args)

    monkeypatch.setattr(Producer, "transaction", slow)
    with installed(FakeBroker()) as broker:
        async with _publishing(database, clock=lambda: now):
            await _mark(pool, 1, 1)
            await eventually(lambda: len(_totals(broker)) >= 3)
            assert sent <= 3 * len(_totals(broker))


async def test_totals_that_kafka_did_not_take_are_told_of_again(
    pool: Pool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, transaction = 0, Producer.transaction

    async def failing(self: Producer, *args: Any) -> dict[Partition, int]:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise KafkaUnavailable("not now")
        return await transaction(self, *args)

    monkeypatch.setattr(Producer, "transaction", failing)
    async with pool.connection() as connection:
        await _counted(connection, range(1, 501))
    with installed(FakeBroker()) as broker:
        async with _publishing(database):
            await eventually(lambda: len(_totals(broker)) >= 500)
            assert tried > 1


def _totals(broker: FakeBroker) -> list[int]:
    if KEY_USAGE.name not in broker.topics:
        return []
    return [json.loads(value)["data"]["usage_count"] for value in filter(None, broker.values(KEY_USAGE.name)[0])]


async def _all_published(database: str) -> bool:
    async with await connect(database) as connection:
        row = await (await connection.execute("SELECT count(*) AS n FROM request_marks WHERE changed")).fetchone()
        assert row is not None
        return int(row["n"]) == 0


async def _counted(connection: Connection, keys: range) -> None:
    await store.record(connection, store.Rows(), {key: Count(1, 2, 1, NOON) for key in keys})


async def _passed(connection: Connection, size: int = 1000) -> list[store.Usage]:
    return [usage async for part in store.changed_usage(connection, size) for usage in part]


async def test_counters_that_changed_are_told_of_until_they_are_published(pool: Pool, database: str) -> None:
    async with await connect(database) as connection:
        await _counted(connection, range(1, 951))
        await _counted(connection, range(900, 1001))
        begun = store.changed_usage(connection, 100)
        assert len(await anext(begun)) == 100
        await begun.aclose()
        changed = await _passed(connection)
        assert {usage.key_id: usage.usage_count for usage in changed} == {
            key: 2 if 900 <= key <= 950 else 1 for key in range(1, 1001)
        }
        assert await _passed(connection) == []


async def test_counter_that_changes_while_a_pass_goes_on_is_told_of_in_the_next(pool: Pool, database: str) -> None:
    async with await connect(database) as connection:
        await _counted(connection, range(1, 11))
        async for part in store.changed_usage(connection, 10):
            if part:
                await _counted(connection, range(3, 5))
        assert sorted((usage.key_id, usage.usage_count) for usage in await _passed(connection)) == [(3, 2), (4, 2)]


async def test_a_pass_takes_no_more_than_it_can_look_through(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_CHANGED_AT_ONCE", (100, 8 * 3000))
    async with pool.connection() as connection:
        for first in range(1, 10_001, 1000):
            await _counted(connection, range(first, first + 1000))
        passes = [len(await _passed(connection)) for _ in range(5)]
        assert passes == [3000, 3000, 3000, 1000, 0]
        monkeypatch.setattr(store, "_CHANGED_AT_ONCE", (100, 1))
        await _counted(connection, range(1, 1001))
        assert len(await _passed(connection)) == 1000


async def test_all_counters_are_published_again_in_steps(
    pool: Pool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_TOLD_AT_ONCE", 100)
    async with await connect(database) as connection:
        await _counted(connection, range(3, 3 * 951, 3))
        await _passed(connection)
        await store.publish_all_again(connection)
        assert len(await _passed(connection)) == 950


async def test_counters_that_were_flagged_are_told_of_after_the_migration(database: str, tmp_path: Path) -> None:
    own = Path(services.usage.__file__).parent / "migrations"
    await migrate(database, [MIGRATIONS / "consumer", up_to("0002", own, tmp_path)])
    async with await connect(database) as connection:
        await connection.execute(
            "INSERT INTO key_counters (key_id, owner_id, rows, calls, changed)"
            " SELECT 3 * n, 1, 1, 1, n % 2 = 0 FROM generate_series(1, 25000) n"
        )
        await migrate(database, [MIGRATIONS / "consumer", own])
        assert {usage.key_id for usage in await _passed(connection)} == set(range(6, 75_001, 6))
