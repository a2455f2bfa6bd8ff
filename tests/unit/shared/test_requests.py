"""What a service's application takes from a request: its ids for the events, its times, ids in paths, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter

from shared.api import Body, Moment, path_id
from shared.eventstore import Meta
from shared.http import create_app

pytestmark = pytest.mark.anyio
router = APIRouter()
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Until(Body):
    until: Moment


@router.post("/until")
async def until(body: Until) -> str:
    return body.until.isoformat()


@router.get("/meta")
async def meta() -> dict[str, Any]:
    return vars(Meta.of("key-1"))


@router.get("/things/{thing_id}")
async def thing(number: Annotated[int, path_id("thing_id", "No such thing.")]) -> int:
    return number


@router.delete("/things/{thing_id}")
async def delete_thing(thing_id: str) -> None:
    pass


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app("test", None)
    app.include_router(router)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service") as opened:
        yield opened


async def _meta(client: httpx2.AsyncClient, **headers: str) -> dict[str, Any]:
    answer = await client.get("/meta", headers={name.replace("_", "-"): value for name, value in headers.items()})
    found: dict[str, Any] = answer.json()
    return {name: value for name, value in found.items() if value is not None}


async def test_events_tell_the_request_that_caused_them(client: httpx2.AsyncClient) -> None:
    """And what that belongs to: what the client calls it, or else nothing but itself."""
    found = await _meta(client, x_request_id="r1", x_correlation_id="mine", traceparent=TRACE)
    assert found == {
        "actor": "key-1",
        "request_id": "r1",
        "correlation_id": "mine",
        "causation_id": "r1",
        "traceparent": TRACE,
    }
    found = await _meta(client, x_request_id="r2")
    assert found == {"actor": "key-1", "request_id": "r2", "correlation_id": "r2", "causation_id": "r2"}
    assert await _meta(client) == {"actor": "key-1"}


@pytest.mark.parametrize("value", ["", "x" * 129, "two words", "\u00fc", "a\x01"], ids=ascii)
async def test_ids_that_are_none_are_not_kept(client: httpx2.AsyncClient, value: str) -> None:
    sent = value.encode("latin-1")
    answer = await client.get("/meta", headers=[(b"x-request-id", sent), (b"x-correlation-id", sent)])
    assert {name for name, held in answer.json().items() if held is not None} == {"actor"}


@pytest.mark.parametrize(
    "value",
    [
        TRACE.upper(),
        TRACE + "-x",
        TRACE[1:],
        TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        TRACE.replace("00f067aa0ba902b7", "0" * 16),
        "ff" + TRACE[2:],
    ],
)
async def test_a_trace_that_is_none_is_not_kept(client: httpx2.AsyncClient, value: str) -> None:
    assert "traceparent" not in await _meta(client, x_request_id="r1", traceparent=value)


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ("2030-01-02T03:04:05Z", "2030-01-02T03:04:05+00:00"),
        ("2030-01-02T03:04:05+12:00", "2030-01-01T15:04:05+00:00"),
        ("2030-01-02t03:04:05.123456-00:30", "2030-01-02T03:34:05.123456+00:00"),
    ],
)
async def test_times_are_taken_as_utc(client: httpx2.AsyncClient, sent: str, taken: str) -> None:
    assert (await client.post("/until", json={"until": sent})).json() == taken


@pytest.mark.parametrize(
    "sent",
    [
        "9999-12-31T23:59:59-12:00",
        "0001-01-01T00:00:00+12:00",
        "9999-12-31T23:59:59Z",
        timedelta(days=36_600),
        timedelta(days=-36_600),
        "2030-01-02T03:04:05",
        "2030-01-02",
        "1900000000",
        1_900_000_000,
        1_900_000_000.5,
        None,
        True,
    ],
    ids=str,
)
async def test_times_are_bounded_and_written_as_the_internet_does(client: httpx2.AsyncClient, sent: object) -> None:
    if isinstance(sent, timedelta):
        sent = (datetime.now(UTC) + sent).isoformat()
    answer = await client.post("/until", json={"until": sent})
    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, ["until"])


async def test_the_schema_says_how_times_are_bounded() -> None:
    app = create_app("test", None)
    app.include_router(router)
    field = app.openapi()["components"]["schemas"]["Until"]["properties"]["until"]
    assert (field["type"], field["format"]) == ("string", "date-time")
    assert "100 years" in field["description"]


async def test_an_id_in_a_path(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/things/7")).json() == 7
    for text in ("0", "07", "x", "9" * 20):
        answer = (await client.get(f"/things/{text}")).json()
        assert (answer["code"], answer["detail"]) == ("not_found", "No such thing.")


async def test_a_precondition_is_refused_rather_than_ignored(client: httpx2.AsyncClient) -> None:
    for method in ("GET", "DELETE"):
        answer = await client.request(method, "/things/7", headers={"If-Match": '"3"'})
        assert (answer.status_code, answer.json()["code"]) == (400, "precondition_unsupported")
