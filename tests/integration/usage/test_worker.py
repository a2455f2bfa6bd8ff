"""Metered requests are stored and counted exactly once whatever happens to the worker, the database and Kafka."""

from __future__ import annotations

import asyncio
import random
import signal
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from shared.events import CloudEvent
from shared.events.requests import KeyUsage, UsageMark
from shared.events.topics import KEY_USAGE, REQUEST_EVENTS, USAGE_MARKS
from shared.kafka import ensure_topics
from shared.settings import Base
from tests.integration.usage.processes import Agent, Service
from tests.integration.usage.traffic import Log, Written, ship
from tests.support.eventually import eventually
from tests.support.faults import crash
from tests.support.stack import Servers
from tests.support.topics import adelete_topics, decoded, read_topic

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


async def latest(kafka: str, topic: str) -> dict[str, dict[str, Any]]:
    """The last event of each key of a compacted topic."""
    found = await read_topic(kafka, topic)
    for record in (record for records in found.values() for record in records):
        (CloudEvent[KeyUsage] if topic == KEY_USAGE.name else CloudEvent[UsageMark]).model_validate_json(
            record.value or b""
        )
    return {event["subject"]: event for records in found.values() for event in decoded(records)}


async def holds(usage: Service, records: list[Written], deadline: float = 90.0) -> None:
    """Waits until everything is stored, then compares: each once, nothing else, and the counters are its fold."""

    def complete() -> bool:
        return bool(usage.rows("SELECT coalesce(sum(rows), 0) >= %s FROM key_counters", len(records))[0][0])

    await eventually(complete, deadline, 0.1)
    stored = usage.rows("SELECT source, sequence FROM request_log ORDER BY source, sequence")
    assert stored == sorted((record.event.source, record.event.data.sequence) for record in records)
    counted = usage.rows("SELECT key_id, owner_id, rows, calls, last_used FROM key_counters ORDER BY key_id")
    folded = usage.rows(
        "SELECT key_id, min(owner_id), count(*), count(*) FILTER (WHERE call), max(time) FILTER (WHERE call)"
        " FROM request_log GROUP BY key_id ORDER BY key_id"
    )
    assert counted == folded


async def published(usage: Service) -> None:
    """Waits until everything that changed is published, and compares the topics with the tables."""
    flagged = "SELECT 1 FROM changed_keys UNION ALL SELECT 1 FROM request_marks WHERE changed"
    await eventually(lambda: not usage.rows(flagged))
    totals = {name: event["data"] for name, event in (await latest(usage.kafka, KEY_USAGE.name)).items()}
    for key_id, owner_id, calls, last_used in usage.rows("SELECT key_id, owner_id, calls, last_used FROM key_counters"):
        data = totals[f"key-{key_id}"]
        assert (data["owner_id"], data["usage_count"]) == (owner_id, calls)
        assert (data["last_used"] and datetime.fromisoformat(data["last_used"])) == last_used
    marks = {name: event["data"] for name, event in (await latest(usage.kafka, USAGE_MARKS.name)).items()}
    for log, partition, last, gaps in usage.rows("SELECT log, partition, last, gaps FROM request_marks"):
        data = marks[f"{log}/{partition}"]
        assert (data["mark"], [end for gap in data["gaps"] for end in gap], data["closed"]) == (last, gaps, False)


async def test_workers_killed_at_random_moments(usage: Service, agent: Agent) -> None:
    await agent.survives_kills(usage, random.Random(3), 10)
    await holds(usage, agent.sent)
    await published(usage)


async def test_worker_that_was_stopped_and_wakes_up_stores_and_publishes_nothing_old(
    usage: Service, agent: Agent
) -> None:
    """Past the session timeout another worker has its partitions; what it read before is that one's."""
    zombie = usage.start()
    async with agent.running():
        await zombie.ready()
        await agent.settled()
        zombie.send(signal.SIGSTOP)
        heir = usage.start()
        await agent.settled()
        await eventually(lambda: heir.checks()["checks"]["consumer"]["detail"] == "6 partitions", 60)
        await eventually(lambda: heir.checks()["checks"]["publisher"]["detail"] == "leading", 60)
        await agent.settled()
        zombie.send(signal.SIGCONT)
        await agent.settled()
        await eventually(lambda: zombie.checks()["checks"]["consumer"]["detail"] == "3 partitions", 60)
        await agent.settled()
    await holds(usage, agent.sent)
    await published(usage)


async def test_postgres_killed(usage: Service, agent: Agent, servers: Servers) -> None:
    usage.start()
    async with agent.running():
        for _ in range(3):
            await agent.settled()
            await crash(servers, "postgres")
    await holds(usage, agent.sent)
    await published(usage)


async def test_kafka_killed(usage: Service, agent: Agent, servers: Servers) -> None:
    worker = usage.start()
    async with agent.running():
        for _ in range(2):
            await agent.settled()
            await crash(servers, "kafka")
        await agent.settled()
        await worker.ready()
    await holds(usage, agent.sent)
    await published(usage)


async def test_worker_ends_in_time_without_kafka(usage: Service, agent: Agent, servers: Servers) -> None:
    worker = usage.start()
    async with agent.running():
        await worker.ready()
        await agent.settled()
    servers.processes.pause("kafka")
    try:
        worker.send(signal.SIGTERM)
        assert await asyncio.to_thread(worker.process.wait, 20) == 0
    finally:
        servers.processes.resume("kafka")


async def test_closed_log_is_published_for_each_partition(usage: Service) -> None:
    log = Log()
    records = [log.write(key) for key in range(1, 30)]
    await ship(usage.kafka, REQUEST_EVENTS.name, records + log.close())
    usage.start()
    await holds(usage, records)
    await eventually(lambda: usage.rows("SELECT 1 FROM closed_logs WHERE NOT changed"))
    marks = await latest(usage.kafka, USAGE_MARKS.name)
    for partition in range(6):
        data = marks[f"{log.id}/{partition}"]["data"]
        assert (data["log"], data["partition"], data["mark"], data["closed"]) == (log.id, partition, 29, True)


async def test_totals_are_published_at_most_once_a_second(usage: Service, agent: Agent) -> None:
    worker = usage.start()
    async with agent.running():
        await worker.ready()
        await agent.settled(5000)
    await holds(usage, agent.sent)
    await published(usage)
    by_key: dict[str, list[datetime]] = {}
    for records in (await read_topic(usage.kafka, KEY_USAGE.name)).values():
        for event in decoded(records):
            by_key.setdefault(event["subject"], []).append(datetime.fromisoformat(event["time"]))
    assert max(map(len, by_key.values())) > 1
    for times in by_key.values():
        assert all((after - before).total_seconds() > 0.9 for before, after in pairwise(times))


async def test_what_kafka_has_lost_is_published_again(usage: Service) -> None:
    log = Log()
    records = [log.write(key) for key in range(1, 30)]
    await ship(usage.kafka, REQUEST_EVENTS.name, records)
    worker = usage.start()
    await holds(usage, records)
    await published(usage)
    worker.send(signal.SIGKILL)
    await adelete_topics(usage.kafka, [KEY_USAGE.name, USAGE_MARKS.name])
    await ensure_topics(Base(kafka=usage.kafka), [KEY_USAGE, USAGE_MARKS])
    again = usage.start()
    await eventually(lambda: again.checks()["checks"]["publisher"]["detail"] == "leading", 60)
    await published(usage)
