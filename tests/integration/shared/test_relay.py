"""The relay between real PostgreSQL and Kafka: killed, stopped, and with either of them losing what it had."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Conflict, Unavailable
from shared.events.topics import Topic
from shared.kafka import Fenced, KafkaUnavailable, Message, Partition, Producer, Reader, ensure_topics
from shared.postgres import Pool, connect
from shared.relay.checkpoint import Checkpoint, Written
from shared.relay.loop import Relay
from shared.relay.publication import Publication
from shared.relay.store import Log
from shared.settings import Base
from tests.support.eventlog import add, event_log, rows
from tests.support.eventually import eventually
from tests.support.faults import crash
from tests.support.relayed import (
    EVENTS,
    PARTITIONS,
    PUBLICATION,
    STATES,
    RelayProcess,
    assert_events_are_the_log,
    assert_states_are_the_table,
    assert_transactions_end_with_heartbeats,
    published,
)
from tests.support.stack import Servers
from tests.support.topics import adelete_topics, decoded, ends_of, read_topic

pytestmark = pytest.mark.anyio

Start = Callable[[], RelayProcess]


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with event_log(database) as pool:
        yield pool


@pytest.fixture
def start(database: str, kafka: str, tmp_path: Path) -> Iterator[Start]:
    """Starts relays, which all end with the test."""
    started: list[RelayProcess] = []

    def start() -> RelayProcess:
        started.append(RelayProcess(database, kafka, tmp_path / f"relay-{len(started)}.log"))
        return started[-1]

    yield start
    for relay in started:
        relay.kill()


def _settings(kafka: str) -> Base:
    return Base(kafka=kafka, partitions=PARTITIONS)


@asynccontextmanager
async def _relay(database: str, kafka: str, publication: Publication = PUBLICATION) -> AsyncIterator[Relay]:
    """A relay in this process."""
    relay, stop = Relay(_settings(kafka), database, publication), asyncio.Event()
    running = asyncio.ensure_future(relay.run(stop))
    try:
        yield relay
    finally:
        stop.set()
        await asyncio.wait_for(running, 20)


async def _quiet(pool: Pool, kafka: str) -> None:
    """Returns when all is published and every partition's last heartbeat says so."""
    await eventually(lambda: published(pool), 60)
    head = (await rows(pool, "SELECT position FROM log_head"))[0]["position"]

    async def beaten() -> bool:
        topic = await read_topic(kafka, STATES.name)
        return all(decoded(records)[-1]["data"].get("position") == head for records in topic.values())

    await eventually(beaten, 60, 0.2)


async def _assert_whole(pool: Pool, kafka: str) -> None:
    await _quiet(pool, kafka)

    async def whole() -> bool:
        await assert_events_are_the_log(pool, kafka)
        await assert_states_are_the_table(pool, kafka)
        return True

    await eventually(whole, 10, 0.5)


@asynccontextmanager
async def _appending(pool: Pool, streams: int = 12) -> AsyncIterator[None]:
    """Commands without a pause, on streams that keep coming."""
    done = asyncio.Event()

    async def append(who: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            try:
                await add(pool, f"a-{who}-{number // 20}", *range(1, 1 + number % 3 + 1))
            except (Conflict, Unavailable):
                continue

    tasks = [asyncio.ensure_future(append(who)) for who in range(streams)]
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*tasks)


async def test_everything_is_published_in_order(pool: Pool, database: str, kafka: str) -> None:
    async with _relay(database, kafka) as relay:
        for number in range(50):
            await add(pool, f"a-{number % 7}", number, 1)
        await _assert_whole(pool, kafka)
        assert relay.checks()["relay"]().ready
    await assert_transactions_end_with_heartbeats(kafka)


async def test_an_event_says_where_it_comes_from(pool: Pool, database: str, kafka: str) -> None:
    async with _relay(database, kafka):
        await add(pool, "a-1", 5)
        await _quiet(pool, kafka)
    log = (await rows(pool, "SELECT event_id, recorded_at FROM events"))[0]
    (event,) = [each for records in (await read_topic(kafka, EVENTS.name)).values() for each in decoded(records)]
    assert event == {
        "specversion": "1.0",
        "id": str(log["event_id"]),
        "source": "keyledger/counters",
        "type": "counter.added",
        "time": log["recorded_at"].isoformat().replace("+00:00", "Z"),
        "subject": "a-1",
        "datacontenttype": "application/json",
        "schemaversion": 1,
        "epoch": 1,
        "position": 1,
        "streamversion": 1,
        "actor": "test",
        "requestid": "r-1",
        "data": {"amount": 5},
    }


async def test_a_relay_killed_at_any_instant_loses_and_reorders_nothing(pool: Pool, kafka: str, start: Start) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    relay = start()
    async with _appending(pool):
        for _ in range(6):
            before = (await rows(pool, "SELECT position FROM relay"))[0]["position"]
            await eventually(lambda before=before: _passed(pool, before))
            await asyncio.sleep(chance.random() * 0.5)
            relay.kill()
            relay = start()
    await _assert_whole(pool, kafka)


async def _passed(pool: Pool, before: int) -> bool:
    return int((await rows(pool, "SELECT position FROM relay"))[0]["position"]) > before


async def test_of_two_relays_one_leads_and_the_other_follows_it(pool: Pool, kafka: str, start: Start) -> None:
    first = start()
    await eventually(lambda: _leads(pool))
    second = start()
    await add(pool, "a-1", 1)
    await eventually(lambda: published(pool))
    first.kill()
    await add(pool, "a-1", 1)
    await eventually(lambda: published(pool), 15)
    assert second.alive()
    await _assert_whole(pool, kafka)


async def _leads(pool: Pool) -> bool:
    return bool(await rows(pool, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted"))


async def test_a_stopped_relay_is_succeeded_and_writes_nothing_when_it_wakes(
    pool: Pool, kafka: str, start: Start, tmp_path: Path
) -> None:
    zombie = start()
    async with _appending(pool, streams=4):
        await eventually(lambda: _passed(pool, 0))
        zombie.send(signal.SIGSTOP)
        stopped_at = asyncio.get_running_loop().time()
        start()
        held = (await rows(pool, "SELECT position FROM relay"))[0]["position"]
        await eventually(lambda: _passed(pool, held), 20)
        took = asyncio.get_running_loop().time() - stopped_at
        zombie.send(signal.SIGCONT)
        await eventually(lambda: "leader interrupted" in (tmp_path / "relay-0.log").read_text())
    assert took < 8
    assert zombie.alive()
    await _assert_whole(pool, kafka)


async def test_a_checkpoint_that_another_relay_moved_is_left_to_it(pool: Pool, database: str) -> None:
    async with await connect(database) as connection:
        log = Log(connection, PUBLICATION)
        held = await log.checkpoint()
        assert held == Checkpoint()
        to = Checkpoint(5, Written({"x": "id"}, {Partition("x", 0): 7}), 1, (2, 0, 1), 3)
        assert await log.move(held, to) == to
        with pytest.raises(KafkaUnavailable, match="moved by another relay"):
            await log.move(held, replace(held, position=3))
        assert await log.checkpoint() == to


async def test_what_a_fenced_producer_holds_is_never_read(kafka: str) -> None:
    topic = Topic("fenced")
    await ensure_topics(_settings(kafka), [topic])
    message = Message(Partition("fenced", 0), b"key", b"{}")
    old = await Producer.open(kafka, "keyledger/fenced")
    new = await Producer.open(kafka, "keyledger/fenced")
    try:
        with pytest.raises(Fenced):
            await old.transaction([message])
        assert await new.transaction([message]) == {Partition("fenced", 0): 1}
    finally:
        await old.abandon()
        await new.abandon()
    assert len((await read_topic(kafka, "fenced"))[0]) == 1


@pytest.mark.parametrize("topics", [[EVENTS.name], [STATES.name]], ids="+".join)
async def test_a_topic_that_was_emptied_is_filled_again(
    pool: Pool, database: str, kafka: str, topics: list[str]
) -> None:
    async with _relay(database, kafka):
        for number in range(40):
            await add(pool, f"a-{number % 9}", *range(20))
        await _quiet(pool, kafka)
        await adelete_topics(kafka, topics)
        await add(pool, "a-1", 1)
        await _assert_whole(pool, kafka)


async def test_without_heartbeats_too_an_emptied_topic_is_noticed_and_filled_again(
    pool: Pool, database: str, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.relay.survey._LOOK", 0.5)
    async with _relay(database, kafka, replace(PUBLICATION, states_topic=None, states_of=None)):
        await add(pool, "a-1", *range(20))
        await eventually(lambda: published(pool), 60)
        await adelete_topics(kafka)

        async def filled() -> bool:
            await assert_events_are_the_log(pool, kafka)
            return True

        await eventually(filled, 60, 0.5)


async def test_a_topic_that_was_emptied_while_no_relay_ran_is_filled_again(
    pool: Pool, database: str, kafka: str
) -> None:
    async with _relay(database, kafka):
        for number in range(40):
            await add(pool, f"a-{number % 9}", *range(20))
        await _quiet(pool, kafka)
    await adelete_topics(kafka)
    await add(pool, "a-1", 1)
    async with _relay(database, kafka):
        await _assert_whole(pool, kafka)


async def test_a_relay_killed_while_it_fills_a_topic_again_begins_that_again(
    pool: Pool, kafka: str, start: Start
) -> None:
    relay = start()
    for number in range(30):
        await add(pool, f"a-{number}", *range(150))
    await _quiet(pool, kafka)
    relay.kill()
    await adelete_topics(kafka)
    for _ in range(3):
        relay = start()
        await eventually(lambda: _has_records(kafka), interval=0.001)
        relay.kill()
    start()
    await _assert_whole(pool, kafka)


async def _has_records(kafka: str) -> bool:
    return any((await ends_of(kafka, EVENTS.name)).values())


async def _checkpoint(pool: Pool) -> dict[str, Any]:
    return (await rows(pool, "SELECT position, topics, offsets, streams FROM relay"))[0]


async def _restore(database: str, position: int, checkpoint: dict[str, Any]) -> None:
    """Makes the database what a backup of then would be."""
    async with await connect(database) as connection:
        await connection.execute("ALTER TABLE events DISABLE TRIGGER USER")
        await connection.execute("DELETE FROM events WHERE position > %s", [position])
        await connection.execute("UPDATE log_head SET position = %s", [position])
        await connection.execute("TRUNCATE counters")
        await connection.execute(
            "INSERT INTO counters SELECT stream, max(version), sum((data->>'amount')::int) FROM events GROUP BY stream"
        )
        await connection.execute("ALTER TABLE events ENABLE TRIGGER USER")
        await connection.execute(
            "UPDATE relay SET position = %s, offsets = %s::jsonb, streams = %s",
            [checkpoint["position"], json.dumps(checkpoint["offsets"]), checkpoint["streams"]],
        )


async def _published_then_restored(pool: Pool, database: str, kafka: str) -> None:
    """Publishes 30 events and restores the database of the first ten."""
    async with _relay(database, kafka):
        for number in range(10):
            await add(pool, f"a-{number % 3}", 1)
        await _quiet(pool, kafka)
        then = await _checkpoint(pool)
        for number in range(20):
            await add(pool, f"a-{number % 3}", 1)
        await _quiet(pool, kafka)
    await _restore(database, 10, then)


async def test_a_topic_ahead_of_a_restored_log_stops_the_relay_and_the_commands(
    pool: Pool, database: str, kafka: str
) -> None:
    await _published_then_restored(pool, database, kafka)
    ends = await ends_of(kafka, EVENTS.name)
    async with _relay(database, kafka) as relay:
        await _repair_needed(pool, relay)
        assert (await ends_of(kafka, EVENTS.name)) == ends


async def test_a_restored_log_that_has_gone_on_is_noticed_too(pool: Pool, database: str, kafka: str) -> None:
    """Commands came before the relay did: the log is as long as the topic, but it is another log."""
    await _published_then_restored(pool, database, kafka)
    for number in range(30):
        await add(pool, f"a-{number % 3}", 2)
    async with _relay(database, kafka) as relay:
        await _repair_needed(pool, relay)


async def _repair_needed(pool: Pool, relay: Relay) -> None:
    await eventually(lambda: "repair" in relay.checks()["relay"]().detail)
    assert not relay.checks()["relay"]().ready
    with pytest.raises(Unavailable) as refused:
        await add(pool, "a-1", 1)
    assert (refused.value.code, refused.value.headers["Retry-After"]) == ("repair_needed", "60")


async def test_the_database_comes_back(servers: Servers, pool: Pool, database: str, kafka: str) -> None:
    async with _relay(database, kafka) as relay:
        async with _appending(pool, streams=3):
            await eventually(lambda: _passed(pool, 20))
            await crash(servers, "postgres")
            before = await eventually(lambda: _position(pool))
            await eventually(lambda: _passed(pool, before + 20))
        await _assert_whole(pool, kafka)
        assert relay.checks()["relay"]().ready


async def test_kafka_comes_back(servers: Servers, pool: Pool, database: str, kafka: str) -> None:
    async with _relay(database, kafka):
        async with _appending(pool, streams=3):
            await eventually(lambda: _passed(pool, 20))
            before = await _position(pool)
            await crash(servers, "kafka")
            await eventually(lambda: _passed(pool, before + 20), 60)
        await _assert_whole(pool, kafka)


async def _position(pool: Pool) -> int:
    return int((await rows(pool, "SELECT position FROM relay"))[0]["position"])


@pytest.mark.parametrize("pause", [0.1, 0.0], ids=["now and then", "without a pause"])
async def test_what_is_appended_is_visible_at_once(
    pool: Pool, database: str, kafka: str, pause: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the return of a command to its event's arrival in a consumer; the figures are for the record."""
    clock = asyncio.get_running_loop().time
    committed: dict[int, float] = {}
    async with _relay(database, kafka):
        await add(pool, "a-0", 1)
        await _quiet(pool, kafka)
        async with _arrivals(kafka, clock) as arrived:
            for number in range(100):
                committed[(await add(pool, f"a-{number % 5}", 1)).place.position] = clock()
                await asyncio.sleep(pause)
            await eventually(lambda: len(arrived) == 100)
    took = sorted((arrived[position] - at) * 1000 for position, at in committed.items())
    with capsys.disabled():
        sys.stdout.write(f"\nvisible after {took[50]:.1f} ms p50, {took[98]:.1f} ms p99 (a command each {pause:g} s) ")
    assert took[50] < 500


@asynccontextmanager
async def _arrivals(kafka: str, clock: Callable[[], float]) -> AsyncIterator[dict[int, float]]:
    """When each position of the log was read, from now on."""
    reader = await Reader.open(kafka, [EVENTS.name])
    for partition, (_, end) in (await reader.bounds(reader.assignment())).items():
        reader.seek(partition, end)
    arrived: dict[int, float] = {}

    async def read() -> None:
        while True:
            for records in (await reader.fetch(timeout_ms=200)).values():
                arrived.update((event["position"], clock()) for event in decoded(records))

    reading = asyncio.ensure_future(read())
    try:
        yield arrived
    finally:
        reading.cancel()
        await reader.close()
