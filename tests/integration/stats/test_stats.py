"""The dashboard: exactly as documented, on numbers that travelled through Kafka in any order."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.stats import api, worker
from services.stats.settings import Settings
from shared.events import EventData
from shared.events.keys import KeyCreated, KeyDeactivated, KeyDeleted, KeyUpdated, Limits, OwnerCreated
from shared.events.tickets import TicketClosed, TicketOpened, TicketReplied, TicketResolved
from shared.events.topics import KEY_EVENTS, REQUEST_EVENTS, TICKET_EVENTS, Topic
from shared.kafka import Message, Partition, Producer, ensure_topics
from shared.partitions import partition_for
from shared.postgres import MIGRATIONS, Pool, migrate, open_pool
from shared.settings import Base
from shared.turns import Turns
from tests.integration.usage.callers import Callers
from tests.integration.usage.processes import Agent, Service
from tests.integration.usage.traffic import Log, Written, ship
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

NOON = datetime(2024, 3, 21, 12, tzinfo=UTC)
SERVICE = Path(worker.__file__).parent
EMPTY: dict[str, Any] = {
    "open_tickets": 0,
    "resolved_tickets": 0,
    "active_api_keys": 0,
    "total_api_calls": 0,
    "api_usage": {"success_rate": 0, "avg_response_time": 0},
    "recent_tickets": [],
    "api_keys": [],
}


def created(key_id: int, owner_id: int = 3, expires_at: datetime | None = None) -> KeyCreated:
    return KeyCreated(
        id=key_id,
        owner_id=owner_id,
        name=f"Key {key_id}",
        description=None,
        permissions=(),
        limits=Limits(),
        expires_at=expires_at,
        addresses=(),
        prefix="kl_live_",
        last_four="wxyz",
        created_at=NOON,
    )


def opened(ticket_id: int, owner_id: int = 3) -> TicketOpened:
    moment = NOON + timedelta(minutes=ticket_id)
    return TicketOpened(id=ticket_id, owner_id=owner_id, subject=f"Subject {ticket_id}", body=None, created_at=moment)


class Relays:
    """Publishes streams as the relays of keys and tickets do."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._versions: dict[str, int] = {}

    async def publish(self, topic: Topic, stream: str, *events: EventData) -> None:
        await self.publish_all(topic, {stream: events})

    async def publish_all(self, topic: Topic, streams: dict[str, Sequence[EventData]]) -> None:
        """All in one transaction."""
        producer = await Producer.open(self._kafka, "relay")
        await producer.transaction(
            [self._message(topic, stream, event) for stream, events in streams.items() for event in events]
        )
        await producer.abandon()

    def _message(self, topic: Topic, stream: str, event: EventData) -> Message:
        self._versions[stream] = version = self._versions.get(stream, 0) + 1
        envelope = {"type": event.TYPE, "time": NOON.isoformat(), "subject": stream, "streamversion": version}
        partition = Partition(topic.name, partition_for(stream.encode(), 6))
        value = json.dumps(envelope | {"epoch": 1, "data": event.model_dump(mode="json")}).encode()
        return Message(partition, stream.encode(), value)


@asynccontextmanager
async def running(settings: Settings, pool: Pool) -> AsyncIterator[None]:
    """The stats worker."""
    stop = asyncio.Event()
    task = asyncio.create_task(worker.consumer(settings, pool).run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


@pytest.fixture
async def pool(database: str, kafka: str) -> AsyncIterator[Pool]:
    await migrate(database, [MIGRATIONS / "consumer", SERVICE / "migrations"])
    await ensure_topics(Base(kafka=kafka), [KEY_EVENTS, TICKET_EVENTS, REQUEST_EVENTS])
    async with open_pool(database) as opened_pool:
        yield opened_pool


@pytest.fixture
def settings(database: str, kafka: str) -> Settings:
    return Settings(kafka=kafka, database=database)


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


@pytest.fixture
async def client(pool: Pool, callers: Callers) -> AsyncIterator[httpx2.AsyncClient]:
    async with callers.client("stats", api.router, api.Context(pool, Turns(2, 2.0))) as opened_client:
        yield opened_client


async def stats(client: httpx2.AsyncClient, headers: dict[str, str], **params: Any) -> dict[str, Any]:
    answer = await client.get("/api/v1/dashboard/stats", headers=headers, params=params)
    assert answer.status_code == 200
    return dict(answer.json())


async def shows(client: httpx2.AsyncClient, headers: dict[str, str], expected: dict[str, Any]) -> None:
    """Waits until the dashboard is exactly as expected."""
    try:

        async def same() -> bool:
            return await stats(client, headers) == expected

        await eventually(same, 20)
    except AssertionError:
        assert await stats(client, headers) == expected


async def test_dashboard_field_for_field(
    settings: Settings, pool: Pool, client: httpx2.AsyncClient, callers: Callers, kafka: str
) -> None:
    relays, log, me = Relays(kafka), Log(), callers.headers(3)
    later = datetime.now(UTC) + timedelta(hours=1)
    last = datetime.now(UTC) - timedelta(minutes=1)
    calls = [
        log.write(1, owner_id=3, response_time=0.1, status_code=200, time=last - timedelta(hours=1)),
        log.write(1, owner_id=3, response_time=0.2, status_code=503, time=last),
        log.write(1, owner_id=3, response_time=0.15, status_code=302, time=last - timedelta(hours=2)),
        log.write(1, owner_id=3, decision="rate_limited", status_code=429),
        log.write(4, owner_id=3, response_time=0.15, status_code=404, time=last),
        log.write(4, owner_id=3, via="authz", response_time=5.0, time=last),
        log.write(9, owner_id=8, response_time=7.0),
    ]
    async with running(settings, pool):
        await ship(kafka, REQUEST_EVENTS.name, calls)
        await relays.publish(KEY_EVENTS, "owner-3", OwnerCreated(id=3, name="Me", created_at=NOON))
        await relays.publish(KEY_EVENTS, "key-1", created(1), KeyUpdated(name="My API Key", description=None))
        await relays.publish(KEY_EVENTS, "key-2", created(2, expires_at=NOON))
        await relays.publish(KEY_EVENTS, "key-3", created(3, expires_at=later), KeyDeactivated())
        await relays.publish(KEY_EVENTS, "key-4", created(4), KeyDeleted())
        await relays.publish(KEY_EVENTS, "key-5", created(5, expires_at=later))
        await relays.publish(KEY_EVENTS, "key-9", created(9, owner_id=8))
        for number in range(1, 9):
            await relays.publish(TICKET_EVENTS, f"ticket-{number}", opened(number))
        replied = TicketReplied(id=1, body="So?", created_at=NOON)
        await relays.publish(TICKET_EVENTS, "ticket-7", replied, TicketResolved())
        await relays.publish(TICKET_EVENTS, "ticket-8", TicketResolved(), TicketClosed())
        await relays.publish(TICKET_EVENTS, "ticket-9", opened(9, owner_id=8))
        at = last.strftime("%Y-%m-%dT%H:%M:%SZ")
        expected = {
            "open_tickets": 6,
            "resolved_tickets": 2,
            "active_api_keys": 2,
            "total_api_calls": 5,
            "api_usage": {"success_rate": 50.0, "avg_response_time": 0.15},
            "recent_tickets": [
                {
                    "id": number,
                    "subject": f"Subject {number}",
                    "status": {7: "resolved", 8: "closed"}.get(number, "open"),
                    "created_at": f"2024-03-21T12:0{number}:00Z",
                }
                for number in (8, 7, 6, 5, 4)
            ],
            "api_keys": [
                {"id": 1, "name": "My API Key", "is_active": True, "usage_count": 3, "last_used": at},
                {"id": 2, "name": "Key 2", "is_active": True, "usage_count": 0, "last_used": None},
                {"id": 3, "name": "Key 3", "is_active": False, "usage_count": 0, "last_used": None},
                {"id": 5, "name": "Key 5", "is_active": True, "usage_count": 0, "last_used": None},
            ],
        }
        await shows(client, me, expected)
    assert await stats(client, callers.headers(8, "admin"), owner=3) == expected
    assert await stats(client, me, owner=3, nonsense="x") == expected


async def test_nothing_yet(client: httpx2.AsyncClient, callers: Callers) -> None:
    assert await stats(client, callers.headers(3)) == EMPTY


async def test_expiry_in_the_year_10000_hides_nothing_that_comes_after_it(
    settings: Settings, pool: Pool, client: httpx2.AsyncClient, callers: Callers, kafka: str
) -> None:
    """In UTC; PostgreSQL has such years, Python has not."""
    never = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=12)))
    relays = Relays(kafka)
    await relays.publish(KEY_EVENTS, "key-1", created(1, expires_at=never))
    async with running(settings, pool):

        async def shown(*active: bool) -> bool:
            keys = (await stats(client, callers.headers(3)))["api_keys"]
            return [key["is_active"] for key in keys] == list(active)

        await eventually(lambda: shown(True))
        await relays.publish(KEY_EVENTS, "key-1", KeyDeactivated())
        await relays.publish(KEY_EVENTS, "key-2", created(2))
        await eventually(lambda: shown(False, True))
    async with pool.connection() as connection:
        assert await (await connection.execute("SELECT error FROM dead_letters")).fetchall() == []


async def test_first_hundred_keys_by_id(
    settings: Settings, pool: Pool, client: httpx2.AsyncClient, callers: Callers, kafka: str
) -> None:
    relays, ids = Relays(kafka), list(range(1, 121))
    random.Random(5).shuffle(ids)
    async with running(settings, pool):
        for at in range(0, 120, 20):
            await relays.publish_all(KEY_EVENTS, {f"key-{key_id}": [created(key_id)] for key_id in ids[at : at + 20]})

        async def all_there() -> bool:
            return (await stats(client, callers.headers(3)))["active_api_keys"] == 120

        await eventually(all_there)
    assert [key["id"] for key in (await stats(client, callers.headers(3)))["api_keys"]] == list(range(1, 101))


@pytest.mark.parametrize("owner", ["x", "0", "-1", "1.5", "99999999999999999999", ""])
async def test_bad_owner_is_invalid(client: httpx2.AsyncClient, callers: Callers, owner: str) -> None:
    answer = await client.get("/api/v1/dashboard/stats", headers=callers.headers(3, "admin"), params={"owner": owner})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.json()["errors"][0]["field"] == "owner"


async def test_other_owners_are_for_admins(client: httpx2.AsyncClient, callers: Callers) -> None:
    answer = await client.get("/api/v1/dashboard/stats", headers=callers.headers(3), params={"owner": 4})
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_missing")
    assert (await client.get("/api/v1/dashboard/stats")).status_code == 401


async def test_calls_are_counted_once_through_restarts_and_repeats(
    settings: Settings, pool: Pool, client: httpx2.AsyncClient, callers: Callers, kafka: str
) -> None:
    log, sent = Log(), list[Written]()
    for _ in range(4):
        records = [log.write(1 + number % 20, owner_id=3, response_time=0.000001) for number in range(500)]
        await ship(kafka, REQUEST_EVENTS.name, sent[-100:] + records)
        sent += records
        async with running(settings, pool):

            async def counted(expected: int = len(sent)) -> bool:
                return (await stats(client, callers.headers(3)))["total_api_calls"] == expected

            await eventually(counted)
    shown = await stats(client, callers.headers(3))
    assert shown["api_usage"] == {"success_rate": 100.0, "avg_response_time": 0.000001}


@pytest.fixture
def processes(kafka: str, database: str, tmp_path: Path) -> Iterator[Service]:
    made = Service("stats", kafka, database, tmp_path)
    made.migrate()
    asyncio.run(ensure_topics(Base(kafka=kafka), [KEY_EVENTS, TICKET_EVENTS, REQUEST_EVENTS]))
    try:
        yield made
    finally:
        made.end()


@pytest.mark.timeout(300)
async def test_workers_killed_at_random_moments(processes: Service, kafka: str) -> None:
    relays, agent = Relays(kafka), Agent(kafka)

    async def commands() -> None:
        for first in range(1, 60, 2):
            some = range(first, first + 2)
            await relays.publish_all(KEY_EVENTS, {f"key-{n}": [created(n), KeyDeactivated()] for n in some})
            await relays.publish_all(TICKET_EVENTS, {f"ticket-{n}": [opened(n), TicketResolved()] for n in some})

    commanding = asyncio.create_task(commands())
    await agent.survives_kills(processes, random.Random(3), 5)
    await commanding
    calls = Counter(record.event.data.key_id for record in agent.sent if record.event.data.decision == "allowed")

    def counted() -> bool:
        return dict(processes.rows("SELECT key_id, calls FROM key_calls")) == calls

    await eventually(counted, 90, 0.2)
    every = list(range(1, 61))
    assert processes.rows("SELECT id FROM keys WHERE status = 'inactive' ORDER BY id") == [
        (number,) for number in every
    ]
    assert processes.rows("SELECT id FROM tickets WHERE status = 'resolved' ORDER BY id") == [(n,) for n in every]
