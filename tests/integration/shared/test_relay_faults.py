"""The relay between a real PostgreSQL and a Kafka that is slow, or that lost what it had acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from shared.kafka import Partition
from shared.postgres import Pool
from shared.relay.loop import Relay
from shared.relay.publication import Publication
from shared.settings import Base
from tests.support.eventlog import add, event_log, rows
from tests.support.eventually import eventually
from tests.support.fakebroker import FakeBroker
from tests.support.fakeclients import installed
from tests.support.relayed import EVENTS, PARTITIONS, PUBLICATION, STATES, published

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with event_log(database) as pool:
        yield pool


@pytest.fixture
async def broker(database: str) -> AsyncIterator[FakeBroker]:
    """With a relay that publishes to it."""
    with installed(FakeBroker()) as broker:
        async with _relay(database):
            yield broker


@asynccontextmanager
async def _relay(database: str, publication: Publication = PUBLICATION) -> AsyncIterator[None]:
    relay, stop = Relay(Base(kafka="fake:9092", partitions=PARTITIONS), database, publication), asyncio.Event()
    running = asyncio.ensure_future(relay.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(running, 20)


def _versions(broker: FakeBroker, topic: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for values in broker.values(topic).values():
        for event in (json.loads(value) for value in values if value):
            if "streamversion" in event:
                found.setdefault(event["subject"], set()).add(event["streamversion"])
    return found


async def test_a_lost_tail_comes_again_though_an_aborted_attempt_lies_where_it_was(
    pool: Pool, broker: FakeBroker
) -> None:
    for number in range(9):
        await add(pool, f"a-{number}", 1, 1)
    await eventually(lambda: published(pool))
    for topic in (EVENTS.name, STATES.name):
        for number in range(PARTITIONS):
            # The last record and the end of its transaction: as long as any attempt makes it again.
            partition = Partition(topic, number)
            broker.lose_tail(partition, broker.log(partition).end - 2)
    for number in range(9):
        await add(pool, f"a-{number}", 1)
    await eventually(lambda: published(pool))
    table = await rows(pool, "SELECT stream, max(version) AS version FROM events GROUP BY stream")

    def whole() -> bool:
        events, states = _versions(broker, EVENTS.name), _versions(broker, STATES.name)
        return all(
            events[row["stream"]] == set(range(1, row["version"] + 1)) and row["version"] in states[row["stream"]]
            for row in table
        )

    await eventually(whole)


async def test_a_broker_slower_than_the_lock_s_connection_may_idle_gets_each_event_once(
    pool: Pool, broker: FakeBroker
) -> None:
    await add(pool, "a-1", 1)
    await eventually(lambda: published(pool))
    broker.slow = 1.5
    await add(pool, "a-1", 1)
    await eventually(lambda: published(pool), 20)
    values = [json.loads(value) for values in broker.values(EVENTS.name).values() for value in values if value]
    assert [event["streamversion"] for event in values] == [1, 2]


async def test_states_of_streams_that_ended_long_ago_are_deleted_and_heartbeats_count_what_is_left(
    pool: Pool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.relay.loop._BATCH", 4)
    monkeypatch.setattr("shared.relay.loop._RETIRE_EVERY", 0.1)
    for number in range(9):
        await add(pool, f"old-{number}", 1)
    ending = replace(PUBLICATION, final=frozenset({"counter.added"}), keep=timedelta(0))
    with installed(FakeBroker()) as broker:
        async with _relay(database, ending):
            await eventually(lambda: _left(broker) == set() and len(_known(broker)) == 9)
            for number in range(PARTITIONS):
                # The deletions are lost, the states before them are not: they have to come again.
                partition = Partition(STATES.name, number)
                log = broker.log(partition)
                deleted = [at for at, entry in log.committed(log.begin) if entry.value is None]
                broker.lose_tail(partition, min(deleted, default=log.end))
            await eventually(lambda: _left(broker) == set() and len(_known(broker)) == 9)
        async with _relay(database, replace(ending, keep=timedelta(days=30))):
            await add(pool, "new", 1)
            await eventually(lambda: _left(broker) == {"new"})
    streams, retired = (await rows(pool, "SELECT streams, retired FROM relay"))[0].values()
    assert (sum(streams), retired) == (1, 9)


def _known(broker: FakeBroker) -> set[bytes | None]:
    """The streams that there is a state or a deletion of."""
    logs = [broker.log(Partition(STATES.name, number)) for number in range(PARTITIONS)]
    return {entry.key for log in logs for _, entry in log.committed(log.begin)} - {
        b"beat-%d" % number for number in range(PARTITIONS)
    }


def _left(broker: FakeBroker) -> set[str] | None:
    """The streams whose states a reader has at the end; None while heartbeats count others."""
    left: set[str] = set()
    for number in range(PARTITIONS):
        log, here = broker.log(Partition(STATES.name, number)), dict[str, bytes | None]()
        for _, entry in log.committed(log.begin):
            here[(entry.key or b"").decode()] = entry.value
        beat = json.loads(here.pop(f"beat-{number}") or b"")
        kept = {stream for stream, value in here.items() if value is not None}
        if beat["data"]["streams"] != len(kept):
            return None
        left |= kept
    return left
