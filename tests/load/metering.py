"""Request events from Kafka into PostgreSQL: the workers of usage and stats, and the former's SQL without a consumer around it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from services.usage.worker import Requests
from shared.events.requests import decode_request
from shared.events.topics import KEY_EVENTS, REQUEST_EVENTS, TICKET_EVENTS
from shared.kafka import Producer, ensure_topics
from shared.postgres import BATCH_STATEMENT, open_pool
from shared.settings import Base
from tests.integration.usage.processes import Service
from tests.integration.usage.traffic import Log, ship
from tests.load import machine
from tests.load.report import Section, missed, spread
from tests.load.stack import directory
from tests.support.eventually import eventually_sync
from tests.support.stack import Servers, local_servers

_LOGS = 4
_TURN = 200
_CHUNK = 20_000
_BATCH = 10_000
_SHARE_MIN = {100: 0.9, 10_000: 0.75}
"""Of what the same SQL does alone, by the number of keys that the events are of."""
_USAGE_MIN, _STATS_MIN = 150_000, 250_000
_COST_MAX = 3.0
_MEMORY_MAX = 200
_SECONDS = 300.0
_COUNTED = {
    "usage": "SELECT coalesce(sum(rows), 0)::bigint FROM key_counters",
    "stats": "SELECT coalesce(sum(calls), 0)::bigint FROM key_calls",
}


@dataclass
class _Rates:
    """Events a second, and of the usage worker the most memory (MB), in each round."""

    usage: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    stats: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def measure(*, rounds: int, events: int) -> Section:
    """Fills the topic once for each number of keys; each round stores all of it into fresh databases, by each way."""
    section = Section("Request events into PostgreSQL", ("how", "events/s", "of it alone"))
    found = {keys: _of_keys(keys, rounds, events) for keys in _SHARE_MIN}
    for keys, rates in found.items():
        ratios = [mine / bare for mine, bare in zip(rates.usage, rates.plain, strict=True)]
        section.rows += [
            (f"the usage worker, from Kafka, exactly once, {keys:,} keys", spread(rates.usage), spread(ratios, 2)),
            (f"decode, COPY and the same upsert alone, {keys:,} keys", spread(rates.plain), ""),
            (f"the stats worker, from Kafka, exactly once, {keys:,} keys", spread(rates.stats), ""),
        ]
        share, least = statistics.median(ratios), _SHARE_MIN[keys]
        section.promises.append(
            (
                f"the usage worker's share of what decode, COPY and upsert do alone, {keys:,} keys",
                f"≥ {least:g}",
                f"{spread(ratios, 2)}{missed(share >= least)}",
            )
        )
    section.promises += _promises(found)
    section.notes.append(
        f"{rounds} rounds of {events:,} events in {_LOGS} request logs, each into an empty database; one worker with its"
        f" publisher of marks and totals; {_BATCH:,} rows a transaction at most, in both. Each event is checked to be"
        " stored once. What a key costs is how much longer COPY and upsert take alone when each event of a transaction is of"
        " another key."
    )
    return section


def _promises(found: Mapping[int, _Rates]) -> Iterator[tuple[str, str, str]]:
    few, many = min(found), max(found)
    for name, rates, least in (("usage", found[few].usage, _USAGE_MIN), ("stats", found[few].stats, _STATS_MIN)):
        met = statistics.median(rates) >= least
        yield (
            f"events/s into PostgreSQL, one {name} worker, exactly once",
            f"≥ {least:,}",
            f"{spread(rates)}{missed(met)}",
        )
    seconds = [1 / statistics.median(found[keys].plain) for keys in (few, many)]
    cost = (seconds[1] - seconds[0]) * _BATCH / (min(many, _BATCH) - few) * 1e6
    yield (
        "cost of each distinct key in a transaction",
        f"≤ {_COST_MAX:g} µs",
        f"**{cost:.1f} µs**{missed(cost <= _COST_MAX)}",
    )
    most = [each for rates in found.values() for each in rates.memory]
    yield "memory of the usage worker", f"≤ {_MEMORY_MAX} MB", f"{spread(most)} MB{missed(max(most) <= _MEMORY_MAX)}"


def _of_keys(keys: int, rounds: int, events: int) -> _Rates:
    rates = _Rates()
    with directory() as path, local_servers(path / "servers") as running:
        logs = [Log() for _ in range(_LOGS)]
        values = asyncio.run(_fill(running, logs, events, keys))
        for number in range(rounds):
            rates.usage.append(_worker("usage", running, path / f"usage-{number}", logs, events, rates.memory))
            rates.plain.append(_plain(running, values))
            rates.stats.append(_worker("stats", running, path / f"stats-{number}", logs, events))
    return rates


async def _fill(servers: Servers, logs: Sequence[Log], events: int, keys: int) -> list[bytes]:
    """Puts the events into the topic, as agents do; returns them."""
    await ensure_topics(Base(kafka=servers.kafka), [REQUEST_EVENTS, KEY_EVENTS, TICKET_EVENTS])
    producer = await Producer.open(servers.kafka)
    values: list[bytes] = []
    try:
        for start in range(0, events, _CHUNK):
            numbers = range(start, min(start + _CHUNK, events))
            written = [logs[n // _TURN % len(logs)].write(n % keys + 1) for n in numbers]
            await ship(servers.kafka, REQUEST_EVENTS.name, written, producer)
            values += [record.value for record in written]
    finally:
        await producer.abandon()
    return values


def _worker(
    name: str, servers: Servers, path: Path, logs: Sequence[Log], events: int, memory: list[float] | None = None
) -> float:
    """Events a second, from the first batch that was stored to the last."""
    path.mkdir()
    with servers.fresh_database() as database:
        service = Service(name, servers.kafka, database, path)
        service.migrate()
        try:
            worker = service.start()
            with psycopg.connect(database, autocommit=True) as watching:
                first, began = eventually_sync(lambda: _stored(watching, name), 60)
                while (now := _stored(watching, name))[0] < events:
                    assert now[1] - began < _SECONDS, f"{now[0]} of {events} events are stored"
                    time.sleep(0.02)
            if memory is not None:
                memory.append(machine.most_memory(worker.process.pid))
            _exactly(service, logs, events)
        finally:
            service.end()
    assert events - first > events / 2, "too few events to measure: the first batches were most of them"
    return (events - first) / (now[1] - began)


def _stored(connection: psycopg.Connection[tuple[int]], name: str) -> tuple[int, float]:
    """How many events are stored, and when that was. Nothing before the first."""
    row = connection.execute(_COUNTED[name].encode()).fetchone()
    assert row is not None and row[0], "nothing is stored yet"
    return row[0], time.monotonic()


def _exactly(service: Service, logs: Sequence[Log], events: int) -> None:
    """That each event is one row, and that each log's marks are at its end."""
    if service.name == "usage":
        assert service.rows("SELECT count(*), count(DISTINCT (source, sequence)) FROM request_log") == [
            (events, events)
        ]
    ends = {(log.id, partition, last) for log in logs for partition, last in log.last.items()}
    assert set(service.rows("SELECT log, partition, last FROM request_marks WHERE gaps = '{}'")) == ends


def _plain(servers: Servers, values: Sequence[bytes]) -> float:
    """Events a second by the service's own SQL, without reading from Kafka, marks, fences or a publisher."""
    with servers.fresh_database() as database:
        Service("usage", servers.kafka, database, Path()).migrate()
        return asyncio.run(_copy(database, values))


async def _copy(database: str, values: Sequence[bytes]) -> float:
    async with open_pool(database, size=1, wait=30, statement=BATCH_STATEMENT) as pool:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
        began = time.monotonic()
        for start in range(0, len(values), _BATCH):
            work = Requests()
            work.add([decode_request(value) for value in values[start : start + _BATCH]])
            async with pool.connection() as connection, connection.transaction():
                await work.store(connection)
        return len(values) / (time.monotonic() - began)
