"""The consumer stores each event exactly once, whatever fails, is repeated, is late or can't be read."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from prometheus_client import REGISTRY

from shared.consumer import dead_letters
from shared.consumer.intake import RETENTION
from shared.consumer.loop import Consumer
from shared.events.requests import RequestEvent
from shared.kafka import Partition, Producer, cluster_id, ensure_topics
from shared.postgres import MIGRATIONS, Connection, migrate, open_pool
from shared.settings import Base
from tests.integration.shared.consuming import (
    BY_MARKS,
    BY_VERSIONS,
    REQUESTS,
    STREAMS,
    Bench,
    Gate,
    bench,
    by_marks,
    identities,
    key_on,
    names_of_any_bytes,
    store_requests,
)
from tests.integration.usage.traffic import Log, Written
from tests.support.eventually import eventually
from tests.support.migrations import up_to
from tests.support.topics import adelete_topics

pytestmark = pytest.mark.anyio

LOST_TAILS = "keyledger_consumer_lost_tails_total"


@pytest.fixture
async def requests(kafka: str, database: str) -> AsyncIterator[Bench]:
    """A topic of request events."""
    async with bench(kafka, database, BY_MARKS) as made:
        yield made


@pytest.fixture
async def streams(kafka: str, database: str) -> AsyncIterator[Bench]:
    """A topic of relayed events."""
    async with bench(kafka, database, BY_VERSIONS) as made:
        yield made


def traffic(log: Log, count: int, keys: int = 50) -> list[Written]:
    return [log.write(1 + index % keys) for index in range(count)]


def relayed(stream: str, version: int, **data: object) -> bytes:
    moment = datetime.now(UTC).isoformat()
    envelope = {"type": "thing.done", "time": moment, "subject": stream, "streamversion": version, "epoch": 1}
    return json.dumps(envelope | {"data": data}).encode()


async def unready(consumer: Consumer) -> str:
    """Waits until the consumer says that it is not ready, other than at its start; what it says."""
    check = consumer.checks()["consumer"]
    await eventually(lambda: not check().ready and check().detail != "starting")
    return check().detail


async def ready(consumer: Consumer) -> None:
    await eventually(lambda: consumer.checks()["consumer"]().ready)


async def test_repeats_are_dropped_and_the_rest_is_taken_once(requests: Bench) -> None:
    first, second = Log(), Log()
    records = traffic(first, 300) + traffic(second, 200)
    await requests.ship(records)
    async with requests.consumer():
        await requests.has_taken(identities(records))
        more = traffic(first, 100)
        await requests.ship(records[100:] + more)
        await requests.has_taken(identities(records + more))
    assert sum((await requests.next_offsets()).values()) == 500 + 400 + 100


async def test_restarted_consumer_goes_on_where_the_database_says(requests: Bench) -> None:
    log = Log()
    records = traffic(log, 100)
    await requests.ship(records)
    async with requests.consumer():
        await requests.has_taken(identities(records))
    more = traffic(log, 100)
    await requests.ship(more)
    async with requests.consumer():
        await requests.has_taken(identities(records + more))


async def test_lost_batch_opens_a_gap_and_is_taken_when_it_comes_late(requests: Bench) -> None:
    log, key = Log(), key_on(2)
    records = [log.write(key) for _ in range(9)]
    await requests.ship(records[:3] + records[6:])
    async with requests.consumer():
        await requests.has_taken(identities(records[:3] + records[6:]))
        assert await requests.rows("SELECT last, gaps, gap_since IS NOT NULL FROM request_marks") == [(8, [2, 5], True)]
        await requests.ship([records[4]])
        await requests.has_taken(identities([*records[:3], records[4], *records[6:]]))
        assert await requests.rows("SELECT last, gaps FROM request_marks") == [(8, [2, 3, 4, 5])]
        await requests.ship(records[3:6])
        await requests.has_taken(identities(records))
    assert await requests.rows("SELECT last, gaps, gap_since FROM request_marks") == [(8, [], None)]


async def test_closed_log_collapses_into_one_row_and_whatever_comes_again_is_dropped(requests: Bench) -> None:
    log, key = Log(), key_on(2)
    records = [log.write(key) for _ in range(6)] + traffic(log, 30)
    closing = log.close()
    await requests.ship(records[:2] + records[4:] + closing)
    async with requests.consumer():
        await requests.has_taken(identities(records[:2] + records[4:]))
        assert await requests.rows("SELECT log FROM closed_logs") == []
        await requests.ship(records[2:4])
        await requests.has_taken(identities(records))
        assert await requests.rows("SELECT log, last, partitions FROM closed_logs") == [(log.id, 36, 6)]
        assert await requests.rows("SELECT * FROM request_marks") == []
        other = traffic(Log(), 50)
        await requests.ship(records + closing + other)
        await requests.has_taken(identities(records + other))
    assert await requests.rows("SELECT log FROM request_marks WHERE log = %s", [log.id]) == []


async def test_closing_record_is_never_a_duplicate(requests: Bench) -> None:
    """It may come again after others of its log that were late; the gap before it is still a gap."""
    log, key = Log(), key_on(2)
    records = [log.write(key) for _ in range(4)]
    closing = log.close()
    await requests.ship(records[:2] + closing + [closing[2]])
    async with requests.consumer():
        await requests.has_taken(identities(records[:2]))
        await requests.ship([closing[2], *records[2:], closing[2]])
        await requests.has_taken(identities(records))
        await eventually(lambda: requests.rows("SELECT 1 FROM closed_logs"))


async def test_times_out_of_bounds_are_held_within_them(requests: Bench) -> None:
    now, log = datetime.now(UTC), Log()
    times = [now - timedelta(days=1000), now - timedelta(days=1), now + timedelta(days=1000)]
    records = [log.write(1, time=moment) for moment in times]
    await requests.ship(records)
    async with requests.consumer():
        await requests.has_taken(identities(records))
    [(long_ago,), (yesterday,), (ahead,)] = await requests.rows("SELECT time FROM taken ORDER BY sequence")
    assert abs(long_ago - (now - RETENTION)) < timedelta(minutes=1)
    assert yesterday == times[1]
    assert now < ahead < now + timedelta(minutes=3)


async def test_two_consumers_that_come_and_go_take_each_once(requests: Bench) -> None:
    logs = [Log() for _ in range(3)]
    sent: list[Written] = []

    async def some() -> None:
        records = [written for log in logs for written in traffic(log, 200)]
        sent.extend(records)
        await requests.ship(records)

    async with requests.consumer() as first:
        await some()
        await ready(first)
        for _ in range(3):
            async with requests.consumer() as second:
                await some()
                await eventually(lambda: partitions(second) == 3)
                await some()
            await some()
        await requests.has_taken(identities(sent))


async def test_broken_connections_and_unknown_commits_lose_and_repeat_nothing(requests: Bench) -> None:
    """The handler's own connection is ended at random, before, within and after its work."""
    dice = random.Random(7)

    async def unlucky(connection: Connection, events: Sequence[RequestEvent]) -> None:
        if dice.random() < 0.3:
            await requests.do("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        await store_requests(connection, events)
        if dice.random() < 0.3:
            await requests.do("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])

    requests.subscription = by_marks(unlucky)
    log, sent = Log(), list[Written]()
    async with requests.consumer():
        for _ in range(12):
            records = traffic(log, 50)
            sent += records
            await requests.ship(records)
            await eventually(requests.taken)
        await requests.has_taken(identities(sent), 60)


async def test_consumer_without_its_database_leaves_the_group_and_comes_back_by_itself(
    requests: Bench, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away for longer than the pool waits for a connection. Meanwhile another consumer has all partitions."""
    monkeypatch.setattr("shared.consumer.loop._PATIENCE", 2.0)
    gate, log = Gate(database), Log()
    await gate.open()
    records = traffic(log, 50)
    await requests.ship(records)
    async with open_pool(gate.dsn, size=2) as pool, Bench(requests.kafka, pool, BY_MARKS).consumer() as cut_off:
        await requests.has_taken(identities(records))
        async with requests.consumer() as other:
            await eventually(lambda: partitions(other) == partitions(cut_off) == 3)
            gate.shut()
            records += traffic(log, 50)
            await requests.ship(records[50:])
            await requests.has_taken(identities(records))
            await eventually(lambda: partitions(other) == 6)
            await eventually(lambda: "couldn't get a connection" in cut_off.checks()["consumer"]().detail)
        await gate.open()
        records += traffic(log, 50)
        await requests.ship(records[100:])
        await requests.has_taken(identities(records))
        await eventually(lambda: partitions(cut_off) == 6)
    gate.shut()


def partitions(consumer: Consumer) -> int:
    """How many it says that it reads; 0 when it is not ready."""
    check = consumer.checks()["consumer"]()
    return int(check.detail.split()[0]) if check.ready else 0


async def test_poison_is_parked_as_it_came_and_the_rest_goes_on(requests: Bench) -> None:
    log, key = Log(), key_on(4)
    good = [log.write(key) for _ in range(3)]
    unreadable = replace(log.write(key), value=b'{"no": "event"}')
    implausible = log.write(key, status_code=70_000)
    nul = log.write(key, endpoint="/a\x00b")
    good += [log.write(key) for _ in range(3)]
    await requests.ship([*good[:3], unreadable, implausible, nul, *good[3:], unreadable])
    await requests.send((4, b"key-x", b"junk"), (4, b"key-x", None))
    async with requests.consumer() as consumer:
        await requests.has_taken(identities(good))
        await requests.has_offsets({4: 12})
        assert consumer.checks()["consumer"]().ready
    parked = await requests.rows(
        'SELECT "offset", value, header_names, header_values[1], error FROM dead_letters ORDER BY 1'
    )
    assert [row[0] for row in parked] == [3, 4, 5, 10, 11]
    assert parked[0][1:4] == (b'{"no": "event"}', ["source", "sequence", "previous"], log.id.encode())
    assert "status" not in parked[0][4]
    assert parked[3][1:3] == (b"junk", ["content-type"])
    assert await requests.rows("SELECT last, gaps FROM request_marks") == [(8, [])], "parked events move the mark"


async def test_header_names_of_any_bytes_hinder_nobody(requests: Bench) -> None:
    """Kafka does not look at them. What the record says counts, and junk is parked as it came."""
    log, key = Log(), key_on(4)
    good = [log.write(key) for _ in range(4)]
    await requests.ship(good[:2])
    with names_of_any_bytes() as name:
        producer = await Producer.open(requests.kafka)
        batch = producer.batch()
        for value in (good[2].value, b"junk"):
            batch.append(timestamp=None, key=good[2].key, value=value, headers=[(name(b"\xff\x00a"), b"1")])
        await producer.send(batch, Partition(REQUESTS.name, 4))
        await producer.abandon()
    await requests.ship(good[3:])
    async with requests.consumer() as consumer:
        await requests.has_taken(identities(good))
        assert consumer.checks()["consumer"]().ready
    parked = await requests.rows('SELECT "offset", value, header_names, header_values[1] FROM dead_letters')
    assert parked == [(3, b"junk", ["\\xff\\0a"], b"1")]


async def test_what_only_the_database_refuses_is_found_and_parked(requests: Bench) -> None:
    async def picky(connection: Connection, events: Sequence[RequestEvent]) -> None:
        await store_requests(connection, events)
        for event in events:
            await connection.execute("SELECT 1 / %s", [event.data.status_code])

    requests.subscription = by_marks(picky)
    log = Log()
    records = [log.write(1 + index % 20, status_code=0 if index in (7, 30, 31) else 200) for index in range(60)]
    await requests.ship(records)
    async with requests.consumer():
        await requests.has_taken(identities([record for record in records if record.event.data.status_code]))
    errors = await requests.rows("SELECT error FROM dead_letters")
    assert [error for (error,) in errors] == ["DivisionByZero: division by zero"] * 3


async def test_poison_of_many_stops_the_consumer_instead_of_emptying_the_topic(
    requests: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it goes on by itself when what was wrong with it is mended."""
    monkeypatch.setattr("shared.consumer.loop._AFTER_POISON", (0.5, 1.0))
    monkeypatch.setattr("shared.consumer.loop._AGAIN", (0.5, 1.0))
    broken = True

    async def handler(connection: Connection, events: Sequence[RequestEvent]) -> None:
        if broken:
            raise LookupError("a bug")
        await store_requests(connection, events)

    requests.subscription = by_marks(handler)
    log = Log()
    records = [log.write(key, owner_id=key) for key in range(1, 61)]
    await requests.ship(records)
    async with requests.consumer() as consumer:
        assert "of 60 owners or streams" in await unready(consumer)
        assert await requests.rows("SELECT * FROM dead_letters") == []
        broken = False
        await requests.has_taken(identities(records))
        await ready(consumer)


async def test_poison_of_one_owner_stops_nobody(requests: Bench) -> None:
    """However much it sends, whatever else is in the batch."""

    async def picky(connection: Connection, events: Sequence[RequestEvent]) -> None:
        await store_requests(connection, events)
        await connection.execute(
            "SELECT 1 / min(x) FROM unnest(%s::int[]) AS x", [[e.data.status_code for e in events]]
        )

    requests.subscription = by_marks(picky)
    log, bad = Log(), 0
    records = []
    for number in range(1500):
        spoiled = number % 3 != 0
        bad += spoiled
        key, owner, status = (1 + number % 40, 7, 0) if spoiled else (100 + number % 5, 1 + number % 5, 200)
        records.append(log.write(key, owner_id=owner, status_code=status))
    await requests.ship(records)
    async with requests.consumer() as consumer:
        await requests.has_taken(identities([record for record in records if record.event.data.status_code]), 60)
        await ready(consumer)
    assert await requests.rows("SELECT count(*) FROM dead_letters") == [(bad,)]


async def test_any_bytes_in_a_relayed_topic_end_in_park(streams: Bench) -> None:
    """Streams go on behind them, also when all of it is read again, and each is parked once."""
    odd = [b"junk", b"[" * 100_000, b"\xff", b'{"data": {"x": ' + b"[" * 100_000, None]
    await streams.send((0, b"key-1", relayed("key-1", 1)), *[(0, b"key-1", value) for value in odd])
    await streams.send(
        (0, b"key-1", relayed("key-1", 7)), (0, b"\x00", b"{}"), (0, b"k" * 5000, relayed("k" * 5000, 1))
    )
    async with streams.consumer() as consumer:
        await streams.has_taken([("key-1", 1), ("key-1", 7)])
        await eventually(lambda: count_of(streams, "dead_letters", 7))
        await streams.do("UPDATE consumer_offsets SET topic_id = 'of before'")
        await streams.send((0, b"key-1", relayed("key-1", 8)))
        await streams.has_taken([("key-1", 1), ("key-1", 7), ("key-1", 8)])
        await ready(consumer)
    assert await streams.rows("SELECT count(*) FROM dead_letters") == [(7,)]


async def count_of(at: Bench, table: str, count: int) -> bool:
    return await at.rows(f"SELECT count(*) FROM {table}") == [(count,)]


async def test_dead_letters_go_when_they_are_too_old_or_too_many(requests: Bench) -> None:
    await requests.do(
        'INSERT INTO dead_letters (topic, partition, "offset", value, header_names, header_values, error, parked_at, done_at)'
        " SELECT 't', 0, n, repeat('x', 500)::bytea, '{}', '{}', '', now() - n * interval '1 day',"
        " CASE WHEN mod(n, 2) = 0 THEN now() END FROM generate_series(1, 40) AS n"
    )
    async with requests.pool.connection() as connection:
        assert await dead_letters.clean(connection) == 11
        assert await dead_letters.clean(connection) == 0
    assert await requests.rows('SELECT max("offset"), count(*) FROM dead_letters') == [(29, 29)]
    async with requests.pool.connection() as connection:
        await dead_letters.clean(connection, 20_000)
    kept = await requests.rows('SELECT "offset", done_at IS NULL FROM dead_letters')
    assert len([undone for _, undone in kept if undone]) == 15, "those that are not done go last"
    assert len(kept) == 20


async def test_relayed_events_are_taken_by_version(streams: Bench) -> None:
    await streams.send((0, b"key-1", relayed("key-1", 1)), (0, b"key-2", relayed("key-2", 1)))
    await streams.send((0, b"key-1", relayed("key-1", 1)), (0, b"key-1", relayed("key-1", 2)))
    await streams.send((0, b"key-1", relayed("key-1", 1)), (0, b"key-2", relayed("key-2", 2)))
    async with streams.consumer():
        await streams.has_taken([("key-1", 1), ("key-1", 2), ("key-2", 1), ("key-2", 2)])


async def test_missing_version_stops_its_partition_only_and_skips_nothing(streams: Bench) -> None:
    await streams.send(
        (0, b"key-1", relayed("key-1", 1)), (0, b"key-1", relayed("key-1", 3)), (0, b"key-2", relayed("key-2", 1))
    )
    async with streams.consumer() as consumer:
        assert "key-1 goes on with version 3 at offset 1; 1 is held" in await unready(consumer)
        await streams.send((1, b"key-3", relayed("key-3", 1)), (0, b"key-2", relayed("key-2", 2)))
        await streams.has_taken([("key-1", 1), ("key-3", 1)])
    assert (await streams.next_offsets())[0] == 1
    await streams.do("UPDATE stream_versions SET version = 2 WHERE stream = 'key-1'")
    async with streams.consumer() as consumer:
        await streams.has_taken([("key-1", 1), ("key-1", 3), ("key-2", 1), ("key-2", 2), ("key-3", 1)])
        await ready(consumer)


async def test_other_topic_is_read_from_its_start_and_marks_drop_what_is_known(requests: Bench) -> None:
    log = Log()
    records = traffic(log, 100)
    await requests.ship(records)
    async with requests.consumer():
        await requests.has_taken(identities(records))
    await requests.do("UPDATE consumer_offsets SET topic_id = 'of before', next_offset = next_offset + 1000")
    more = traffic(log, 20)
    await requests.ship(more)
    async with requests.consumer():
        await requests.has_taken(identities(records + more))
    assert sum((await requests.next_offsets()).values()) == 120


async def test_offsets_from_before_topics_had_ids_count_on_in_the_same_cluster(
    kafka: str, database: str, tmp_path: Path
) -> None:
    """Those of another cluster mean nothing: such partitions are read from their start."""
    records = traffic(Log(), 100)
    await migrate(database, [up_to("0001", MIGRATIONS / "consumer", tmp_path)])
    async with open_pool(database, size=1) as pool, pool.connection() as connection:
        for number, cluster in ((0, await cluster_id(kafka)), (1, "another")):
            await connection.execute(
                "INSERT INTO consumer_offsets (topic, partition, cluster, next_offset) VALUES (%s, %s, %s, 3)",
                [REQUESTS.name, number, cluster],
            )
    async with bench(kafka, database, BY_MARKS) as requests:
        await requests.ship(records)
        of_before = [record for record in records if record.partition == 0][:3]
        async with requests.consumer() as consumer:
            await requests.has_taken(identities([record for record in records if record not in of_before]))
            await ready(consumer)


async def test_running_consumer_notices_that_the_topic_was_made_anew(
    requests: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And longer than it was: no error and no offset tells."""
    monkeypatch.setattr("shared.consumer.watch._LOOK_EVERY", 0.5)
    log = Log()
    records = traffic(log, 100)
    await requests.ship(records)
    async with requests.consumer():
        await requests.has_taken(identities(records))
        await adelete_topics(requests.kafka, [REQUESTS.name])
        await ensure_topics(Base(kafka=requests.kafka), [REQUESTS])
        more = traffic(log, 130)
        await requests.ship(more)
        await requests.has_taken(identities(records + more))
        await requests.ship(records[90:] + more)
        await eventually(lambda: all_of(requests))
        await requests.has_taken(identities(records + more))


async def all_of(at: Bench) -> bool:
    return await at.next_offsets() == await ends(at)


async def test_relayed_topic_that_lost_its_tail_is_read_from_its_start(streams: Bench) -> None:
    sent = [(0, b"key-1", relayed("key-1", version)) for version in range(1, 10)]
    await streams.send(*sent)
    async with streams.consumer():
        await streams.has_taken([("key-1", version) for version in range(1, 10)])
    await adelete_topics(streams.kafka, [STREAMS.name])
    await ensure_topics(Base(kafka=streams.kafka), [STREAMS])
    await streams.send(*sent[:5], (0, b"key-2", relayed("key-2", 1)))
    async with streams.consumer():
        await streams.has_taken([*(("key-1", version) for version in range(1, 10)), ("key-2", 1)])


async def test_relayed_events_written_over_behind_the_offset_are_read(streams: Bench) -> None:
    """The broker lost a tail, and what was sent again came in another order and went further."""
    one = [(0, b"key-1", relayed("key-1", version)) for version in (1, 2, 3)]
    two = [(0, b"key-2", relayed("key-2", version)) for version in (1, 2, 3)]
    await streams.send(*one)
    async with streams.consumer():
        await streams.has_taken([("key-1", 1), ("key-1", 2), ("key-1", 3)])
    await adelete_topics(streams.kafka, [STREAMS.name])
    await ensure_topics(Base(kafka=streams.kafka), [STREAMS])
    await streams.send(two[0], one[0], two[1], *one[1:], two[2])
    async with streams.consumer() as consumer:
        await streams.has_taken([(f"key-{number}", version) for number in (1, 2) for version in (1, 2, 3)])
        await ready(consumer)


async def test_records_that_expired_unread_stop_their_partition(requests: Bench) -> None:
    log, key, other = Log(), key_on(3), key_on(5)
    records = [log.write(key) for _ in range(10)]
    await requests.ship(records[:5])
    async with requests.consumer():
        await requests.has_taken(identities(records[:5]))
    await requests.ship(records[5:])
    admin = AIOKafkaAdminClient(bootstrap_servers=requests.kafka)
    await admin.start()
    await admin.delete_records({Partition(REQUESTS.name, 3): RecordsToDelete(before_offset=8)})
    await admin.close()
    async with requests.consumer() as consumer:
        assert "records from 5 to 8 are gone" in await unready(consumer)
        elsewhere = log.write(other)
        await requests.ship([elsewhere])
        await requests.has_taken(identities([*records[:5], elsewhere]))
    assert (await requests.next_offsets())[3] == 5


async def test_superseded_consumer_stores_nothing_and_goes_on_from_the_database(requests: Bench) -> None:
    """Somebody else moves the offset while a batch is held: the batch is theirs."""
    log, key = Log(), key_on(0)
    records = [log.write(key) for _ in range(20)]
    await requests.ship(records[:10])
    async with requests.consumer():
        await requests.has_taken(identities(records[:10]))
        await requests.do("UPDATE consumer_offsets SET next_offset = 15 WHERE partition = 0")
        await requests.ship(records[10:])
        await requests.has_taken(identities(records[:10] + records[15:]))


async def test_only_one_of_two_that_hold_the_same_batch_stores_it(requests: Bench) -> None:
    """Two consumers in different groups of one database: the fence lets each batch through once, marks or not."""

    async def forget_marks(connection: Connection, events: Sequence[RequestEvent]) -> None:
        await store_requests(connection, events)
        await connection.execute("DELETE FROM request_marks")

    requests.subscription = by_marks(forget_marks)
    log, sent = Log(), list[Written]()
    producer, lost = await Producer.open(requests.kafka), REGISTRY.get_sample_value(LOST_TAILS)
    async with requests.consumer(), requests.consumer(group="other"):
        for _ in range(40):
            records = traffic(log, 25)
            sent += records
            await requests.ship(records, producer)
        await requests.has_taken(identities(sent))
    await producer.abandon()
    assert REGISTRY.get_sample_value(LOST_TAILS) == lost, "an offset that another has moved on is no lost tail"


async def test_consumer_stuck_in_a_copy_does_not_hold_up_its_successor(requests: Bench) -> None:
    """As one is that was stopped there: the server waits for the rest of a COPY without any deadline."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def stuck(connection: Connection, events: Sequence[RequestEvent]) -> None:
        async with connection.cursor() as cursor, cursor.copy("COPY taken (source, sequence) FROM STDIN") as copy:
            for event in events:
                await copy.write_row((event.source, event.data.sequence))
            begun.set()
            await go_on.wait()

    log = Log()
    records = traffic(log, 100)
    await requests.ship(records)
    requests.subscription = by_marks(stuck)
    async with requests.consumer(group="stuck") as zombie:
        await begun.wait()
        requests.subscription = BY_MARKS
        async with requests.consumer():
            await requests.has_taken(identities(records))
        go_on.set()
        await ready(zombie)
    assert await requests.taken() == sorted(identities(records))


async def test_offset_that_came_back_meanwhile_is_not_the_one_that_was_held(requests: Bench) -> None:
    """Between a batch's marks and its commit the offset went back and forth: what was decided by those marks is void."""
    log, key, tries = Log(), key_on(0), 0

    async def slow(connection: Connection, events: Sequence[RequestEvent]) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            await requests.do("UPDATE consumer_offsets SET turn = turn + 2")
        await store_requests(connection, events)

    requests.subscription = by_marks(slow)
    records = [log.write(key) for _ in range(20)]
    await requests.ship(records[:10])
    async with requests.consumer():
        await requests.has_taken(identities(records[:10]))
        await requests.ship(records[10:])
        await requests.has_taken(identities(records))
    assert tries >= 3


async def ends(at: Bench) -> dict[int, int]:
    """By partition that has records, where it ends."""
    found = await at.ends()
    return {partition.partition: end for partition, end in found.items() if end}
