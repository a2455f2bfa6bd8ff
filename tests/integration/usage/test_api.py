"""What keys is told of a key's requests: exact fields, newest first, only the caller's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from services.usage import api, worker
from shared.postgres import MIGRATIONS, Pool, migrate, open_pool, transaction
from tests.integration.usage.callers import Callers
from tests.integration.usage.traffic import Log, Written

pytestmark = pytest.mark.anyio

NOON = datetime(2024, 3, 21, 12, 0, 0, 999_999, tzinfo=UTC)
SERVICE = Path(worker.__file__).parent


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    await migrate(database, [MIGRATIONS / "consumer", SERVICE / "migrations"])
    async with open_pool(database) as opened:
        yield opened


@pytest.fixture
async def client(pool: Pool, callers: Callers) -> AsyncIterator[httpx2.AsyncClient]:
    async with callers.client("usage", api.router, api.Context(pool)) as opened:
        yield opened


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


async def store(pool: Pool, records: Sequence[Written]) -> None:
    async with transaction(pool) as connection:
        await worker.store_requests(connection, [record.event for record in records])


async def test_calls_have_the_six_documented_fields(pool: Pool, client: httpx2.AsyncClient, callers: Callers) -> None:
    log = Log()
    await store(pool, [log.write(7, owner_id=3, response_time=0.1500004, time=NOON, client_address="10.0.0.1")])
    answer = await client.get("/keys/7/calls", headers=callers.headers(3))
    assert answer.status_code == 200
    [call] = answer.json()
    assert call == {
        "id": 1,
        "endpoint": "/api/v1/tickets",
        "method": "GET",
        "status_code": 200,
        "response_time": 0.15,
        "created_at": "2024-03-21T12:00:00Z",
    }


async def test_calls_are_the_last_ones_newest_first_without_refusals(
    pool: Pool, client: httpx2.AsyncClient, callers: Callers
) -> None:
    log = Log()
    decisions = ["allowed", "rate_limited", "allowed", "inactive"]
    await store(
        pool,
        [
            log.write(
                7, owner_id=3, status_code=index, decision=decisions[index % 4], time=NOON + timedelta(seconds=index)
            )
            for index in range(300)
        ],
    )
    late = log.write(7, owner_id=3, status_code=999, time=NOON + timedelta(seconds=100, microseconds=1))
    await store(pool, [late, log.write(8, owner_id=3)])
    answer = await client.get("/keys/7/calls", headers=callers.headers(3), params={"limit": 100})
    assert [call["status_code"] for call in answer.json()] == [*range(298, 100, -2), 999]


async def test_session_requests_are_rows_but_no_calls(pool: Pool, client: httpx2.AsyncClient, callers: Callers) -> None:
    log = Log()
    await store(pool, [log.write(7, owner_id=3, via=via) for via in ("proxy", "authz", "session")])
    assert len((await client.get("/keys/7/calls", headers=callers.headers(3))).json()) == 2
    assert (await client.get("/keys/7/usage", headers=callers.headers(3))).json()["total"] == 3


async def test_usage_pages_through_all_requests_newest_first(
    pool: Pool, client: httpx2.AsyncClient, callers: Callers
) -> None:
    log = Log()
    records = [
        log.write(
            7, owner_id=3, decision=("allowed", "forbidden", "revoked")[index % 3], time=NOON + timedelta(seconds=index)
        )
        for index in range(25)
    ]
    await store(pool, records)
    shown: list[dict[str, object]] = []
    for page in (1, 2, 3, 4):
        answer = await client.get("/keys/7/usage", headers=callers.headers(3), params={"page": page, "size": 10})
        body = answer.json()
        assert (body["total"], body["page"], body["size"]) == (25, page, 10)
        shown += body["usage"]
    assert [row["request_id"] for row in shown] == [record.event.data.request_id for record in reversed(records)]
    assert set(shown[0]) == set(api.Metered.model_fields)
    assert [row["decision"] for row in shown[:3]] == ["allowed", "revoked", "forbidden"]


async def test_only_the_owner_and_admins_see_a_key(pool: Pool, client: httpx2.AsyncClient, callers: Callers) -> None:
    await store(pool, [Log().write(7, owner_id=3)])
    for path in ("/keys/7/calls", "/keys/7/usage"):
        seen = (await client.get(path, headers=callers.headers(3))).text
        assert "/api/v1/tickets" in seen
        assert "/api/v1/tickets" not in (await client.get(path, headers=callers.headers(4))).text
        assert (await client.get(path, headers=callers.headers(4, "admin"))).text == seen
        assert (await client.get(path)).status_code == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/keys/x/usage", 404),
        ("/keys/0/calls", 404),
        ("/keys/99999999999999999999/usage", 404),
        ("/keys/7/usage?page=0", 422),
        ("/keys/7/usage?size=1001", 422),
        ("/keys/7/usage?page=99999999999999999999&size=1000", 200),
        ("/keys/7/usage", 200),
    ],
)
async def test_bad_parameters(client: httpx2.AsyncClient, callers: Callers, path: str, status: int) -> None:
    assert (await client.get(path, headers=callers.headers(3))).status_code == status


async def test_pages_and_calls_are_read_from_the_index_without_sorting(pool: Pool) -> None:
    """However many requests a key has made, and however many of them were refused."""
    log = Log()
    for _ in range(4):
        decisions = [("allowed", "rate_limited")[number % 3 > 0] for number in range(5000)]
        await store(pool, [log.write(1 + number % 5, decision=decision) for number, decision in enumerate(decisions)])
    async with transaction(pool) as connection:
        await connection.execute("ANALYZE request_log")
        for query, values in (
            (api.store._LAST_CALLS, [3, 100]),
            (api.store._REQUESTS, {"key": 3, "upto": 100, "size": 10, "offset": 90}),
        ):
            plan = await (await connection.execute(f"EXPLAIN {query}".encode(), values)).fetchall()
            lines = " ".join(str(row["QUERY PLAN"]) for row in plan)
            assert "request_log_of_key" in lines
            assert "Seq Scan" not in lines
            assert "Sort  (" not in lines
