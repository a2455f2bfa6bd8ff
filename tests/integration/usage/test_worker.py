"""Metered requests are stored and counted exactly once whatever happens to the worker, the database and Kafka."""

from __future__ import annotations

import asyncio
import os
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
from tests.integration.usage.conftest import Agent, Usage
from tests.integration.usage.traffic import Log, ship
from tests.support.eventually import eventually
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


async def published(usage: Usage) -> None:
    """Waits until everything that changed is published, and compares the topics with the tables."""
    flagged = "SELECT 1 FROM key_counters WHERE changed UNION ALL SELECT 1 FROM request_marks WHERE changed"
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


async def settled(agent: Agent, more: int = 500) -> None:
    """Waits until some more was shipped."""
    before = len(agent.sent)
    await eventually(lambda: len(agent.sent) >= before + more, 60)


async def test_workers_killed_at_random_moments(usage: Usage, agent: Agent) -> None:
    dice = random.Random(3)
    usage.start()
    async with agent.running():
        for _ in range(10):
            await settled(agent, dice.randint(50, 800))
            victims = [worker for worker in usage.workers if worker.process.poll() is None]
            fresh = usage.start()
            if dice.random() < 0.5:
                await fresh.ready()
            dice.choice(victims).send(signal.SIGKILL)
    await usage.holds(agent.sent)
    await published(usage)


async def test_worker_that_was_stopped_and_wakes_up_stores_and_publishes_nothing_old(
    usage: Usage, agent: Agent
) -> None:
    """Past the session timeout another worker has its partitions; what it read before is that one's."""
    zombie = usage.start()
    async with agent.running():
        await zombie.ready()
        await settled(agent)
        zombie.send(signal.SIGSTOP)
        heir = usage.start()
        await settled(agent)
        await eventually(lambda: heir.checks()["checks"]["consumer"]["detail"] == "6 partitions", 60)
        await eventually(lambda: heir.checks()["checks"]["publisher"]["detail"] == "leading", 60)
        await settled(agent)
        zombie.send(signal.SIGCONT)
        await settled(agent)
        await eventually(lambda: zombie.checks()["checks"]["consumer"]["detail"] == "3 partitions", 60)
        await settled(agent)
    await usage.holds(agent.sent)
    await published(usage)


async def test_postgres_killed(usage: Usage, agent: Agent, servers: Servers) -> None:
    usage.start()
    async with agent.running():
        for _ in range(3):
            await settled(agent)
            await killed(servers, "postgres")
    await usage.holds(agent.sent)
    await published(usage)


async def test_kafka_killed(usage: Usage, agent: Agent, servers: Servers) -> None:
    worker = usage.start()
    async with agent.running():
        for _ in range(2):
            await settled(agent)
            await killed(servers, "kafka")
        await settled(agent)
        await worker.ready()
    await usage.holds(agent.sent)
    await published(usage)


async def test_closed_log_is_published_for_each_partition(usage: Usage) -> None:
    log = Log()
    records = [log.write(key) for key in range(1, 30)]
    await ship(usage.kafka, REQUEST_EVENTS.name, records + log.close())
    usage.start()
    await usage.holds(records)
    await eventually(lambda: usage.rows("SELECT 1 FROM closed_logs WHERE NOT changed"))
    marks = await latest(usage.kafka, USAGE_MARKS.name)
    for partition in range(6):
        data = marks[f"{log.id}/{partition}"]["data"]
        assert (data["log"], data["partition"], data["mark"], data["closed"]) == (log.id, partition, 29, True)


async def test_totals_are_published_at_most_once_a_second(usage: Usage, agent: Agent) -> None:
    worker = usage.start()
    async with agent.running():
        await worker.ready()
        await settled(agent, 5000)
    await usage.holds(agent.sent)
    await published(usage)
    by_key: dict[str, list[datetime]] = {}
    for records in (await read_topic(usage.kafka, KEY_USAGE.name)).values():
        for event in decoded(records):
            by_key.setdefault(event["subject"], []).append(datetime.fromisoformat(event["time"]))
    assert max(map(len, by_key.values())) > 1
    for times in by_key.values():
        assert all((after - before).total_seconds() > 0.9 for before, after in pairwise(times))


async def test_what_kafka_has_lost_is_published_again(usage: Usage) -> None:
    log = Log()
    records = [log.write(key) for key in range(1, 30)]
    await ship(usage.kafka, REQUEST_EVENTS.name, records)
    worker = usage.start()
    await usage.holds(records)
    await published(usage)
    worker.send(signal.SIGKILL)
    await adelete_topics(usage.kafka, [KEY_USAGE.name, USAGE_MARKS.name])
    await ensure_topics(Base(kafka=usage.kafka), [KEY_USAGE, USAGE_MARKS])
    again = usage.start()
    await eventually(lambda: again.checks()["checks"]["publisher"]["detail"] == "leading", 60)
    await published(usage)


async def killed(servers: Servers, name: str) -> None:
    """SIGKILL; returns when the server is there again."""
    before = servers.pid(name)
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: servers.status()["ready"] and servers.pid(name) != before, 60)
    await asyncio.sleep(0)
