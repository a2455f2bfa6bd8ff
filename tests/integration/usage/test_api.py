"""What keys is told of a key's requests: exact fields, newest first, only the caller's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.usage import api, worker
from shared.metered import DEEPEST, MeteredRequest
from shared.postgres import MIGRATIONS, Connection, Pool, connect, migrate, open_pool, transaction
from shared.turns import Turns
from tests.integration.usage.callers import Callers
from tests.integration.usage.traffic import Log, Written
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

NOON = datetime(2024, 3, 21, 12, 0, 0, 999_999, tzinfo=UTC)
SERVICE = Path(worker.__file__).parent


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    await migrate(database, [MIGRATIONS / "consumer", SERVICE / "migrations"])
    async with open_pool(database, wait=0.5, statement=1.0) as opened:
        yield opened


@pytest.fixture
async def client(pool: Pool, callers: Callers) -> AsyncIterator[httpx2.AsyncClient]:
    async with callers.client("usage", api.router, api.Context(pool, Turns(at_once=2, wait=0.5))) as opened:
        yield opened


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


async def store(pool: Pool, records: Sequence[Written]) -> None:
    async with transaction(pool) as connection:
        work = worker.Requests()
        work.add([record.event for record in records])
        await work.store(connection)


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
    assert set(shown[0]) == set(MeteredRequest.model_fields)
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
        ("/keys/7/usage?page=99999999999999999999&size=1000", 422),
        (f"/keys/7/usage?page={DEEPEST}&size=1", 200),
        (f"/keys/7/usage?page={DEEPEST // 1000}&size=1000", 200),
        (f"/keys/7/usage?page={DEEPEST // 1000 + 1}&size=1000", 422),
        ("/keys/7/usage?before=1", 200),
        ("/keys/7/usage?before=0", 422),
        ("/keys/7/usage?before=9223372036854775808", 422),
        ("/keys/7/usage", 200),
    ],
)
async def test_bad_parameters(client: httpx2.AsyncClient, callers: Callers, path: str, status: int) -> None:
    assert (await client.get(path, headers=callers.headers(3))).status_code == status


async def test_a_page_that_is_too_deep_says_how_to_go_on(client: httpx2.AsyncClient, callers: Callers) -> None:
    answer = await client.get("/keys/7/usage?page=101&size=100", headers=callers.headers(3))
    assert answer.json()["code"] == "invalid"
    assert "before" in answer.json()["detail"]
    assert [error["field"] for error in answer.json()["errors"]] == ["page"]


async def test_reading_on_with_before_skips_and_repeats_nothing_while_rows_arrive(
    pool: Pool, client: httpx2.AsyncClient, callers: Callers
) -> None:
    """New requests come on top; those of an edge that was away come into their place, which may be still ahead."""
    log = Log()
    seconds = [0, 0, *range(20), 7, 7]

    def written(second: int) -> Written:
        decision = ("allowed", "rate_limited")[second % 2]
        return log.write(7, owner_id=3, decision=decision, time=NOON + timedelta(seconds=second))

    records = [written(second) for second in seconds]
    await store(pool, [*records, log.write(8, owner_id=3, time=NOON)])
    read: list[dict[str, Any]] = []
    query = {"size": 5}
    for turn in range(6):
        page = (await client.get("/keys/7/usage", headers=callers.headers(3), params=query)).json()
        assert (page["page"], page["size"], page["total"]) == (1, 5, len(records) + 2 * turn)
        read += page["usage"]
        query["before"] = read[-1]["id"]
        await store(pool, [written(30), written(31)])
    assert page["usage"] == []
    expected = sorted(records, key=lambda record: (record.event.time, record.event.data.sequence), reverse=True)
    assert [row["request_id"] for row in read] == [record.event.data.request_id for record in expected]


async def test_nothing_is_older_than_a_request_that_is_not_the_keys(
    pool: Pool, client: httpx2.AsyncClient, callers: Callers
) -> None:
    log = Log()
    await store(pool, [log.write(7, owner_id=3), log.write(8, owner_id=4)])
    for before in (2, 3):
        answer = await client.get("/keys/7/usage", headers=callers.headers(3), params={"before": before})
        assert answer.json() == {"usage": [], "total": 1, "page": 1, "size": 10}


_MANY = """
INSERT INTO request_log (key_id, owner_id, time, call, status_code, response_time, endpoint, method, decision, via, route,
    key_version, edge, request_id, source, sequence)
SELECT 1 + n % 3, 1, timestamptz '2024-03-21 12:00Z' + n * interval '1 second', n % 7 = 0, 200, 0.1, '/', 'GET', 'allowed',
    'proxy', 'r', 1, 'e', 'r', 's', n FROM generate_series(0, 299999) AS n
"""


async def test_a_page_reads_no_more_rows_than_it_shows_however_far_back(pool: Pool) -> None:
    """Of 100,000 requests of a key, at any depth, however many of them were refused: from the index."""
    async with transaction(pool, longest=60.0) as connection:
        connection.patience = 60.0
        await connection.execute("SET LOCAL statement_timeout = '60s'")
        await connection.execute(_MANY)
        await connection.execute("ANALYZE request_log")
        rows = await connection.execute("SELECT id, time FROM request_log WHERE key_id = 2 ORDER BY time, id LIMIT 200")
        oldest = [row async for row in rows]
        for asked in ({"time": "infinity", "id": 0}, oldest[150], oldest[5]):
            values = {"key": 2, "upto": 100, "size": 100, "offset": 0} | asked
            assert await scanned(connection, api.store._REQUESTS, values) <= 202
        deepest = {"key": 2, "upto": DEEPEST, "size": 100, "offset": DEEPEST - 100, "time": "infinity", "id": 0}
        assert await scanned(connection, api.store._REQUESTS, deepest) <= 3 * DEEPEST
        assert await scanned(connection, api.store._LAST_CALLS, [3, 100]) == 100


async def scanned(connection: Connection, query: str, values: Any) -> int:
    """How many rows of the log the query touches, all of them by the index of the key."""
    row = await (await connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode(), values)).fetchone()
    assert row is not None
    todo, count = [row["QUERY PLAN"][0]["Plan"]], 0
    while todo:
        node = todo.pop()
        todo += node.get("Plans", [])
        if "Index Name" in node:
            assert node["Index Name"] == "request_log_of_key"
            count += node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        assert node["Node Type"] != "Seq Scan"
    return int(count)


async def test_one_owners_slow_pages_leave_the_database_to_others(
    database: str, pool: Pool, client: httpx2.AsyncClient, callers: Callers
) -> None:
    """Each is ended by the server, and it has no more than its part of the connections meanwhile."""
    log = Log()
    await store(pool, [log.write(7, owner_id=3)])

    async def busy() -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        row = await (await watching.execute(query.encode())).fetchone()
        assert row is not None
        return int(row["count"])

    async with await connect(database) as slow, await connect(database) as watching, slow.transaction():
        await slow.execute("LOCK TABLE request_log")
        headers = callers.headers(3)
        asked = [asyncio.ensure_future(client.get("/keys/7/usage", headers=headers)) for _ in range(40)]
        await eventually(busy)
        answer = await client.get("/keys/9/usage", headers=callers.headers(4))
        assert answer.status_code == 200
        assert await busy() == 2
        answers = await asyncio.wait_for(asyncio.gather(*asked), 10)
        assert {(answer.status_code, answer.headers["retry-after"]) for answer in answers} == {(503, "2")}
        assert await busy() == 0
    assert (await client.get("/keys/7/usage", headers=headers)).json()["total"] == 1
