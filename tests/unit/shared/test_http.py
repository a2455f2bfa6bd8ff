"""What every service does to HTTP, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest
from fastapi import APIRouter

from shared.api import timestamp
from shared.http import create_app, http_server
from tests.support.eventually import eventually
from tests.support.service import free_port

pytestmark = pytest.mark.anyio

router = APIRouter()


@router.get("/a")
async def a() -> dict[str, int]:
    return {"a": 1}


@router.post("/a")
async def other() -> None:
    pass


@router.post("/b")
async def b() -> None:
    pass


@router.get("/now")
async def now() -> str:
    return timestamp(datetime.now(UTC))


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = create_app("test", None)
    app.include_router(router)
    stop, number = asyncio.Event(), free_port()
    serving = asyncio.ensure_future(http_server(app, "127.0.0.1", number)(stop))
    try:
        yield number
    finally:
        stop.set()
        await serving


async def ask(port: int, *requests: str) -> bytes:
    """What comes until the end, to requests on one connection."""
    reader, writer = await eventually(lambda: asyncio.open_connection("127.0.0.1", port))
    *first, last = [f"{request} HTTP/1.1\r\nHost: h\r\n" for request in requests]
    writer.write("\r\n".join([*first, f"{last}Connection: close\r\n", ""]).encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_head_is_answered_as_get_without_content(port: int) -> None:
    first, second, body = (await ask(port, "HEAD /a", "GET /a")).split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: 7\r\n" in first + b"\r\n"
    assert body == b'{"a":1}'


async def test_head_is_allowed_where_get_is(port: int) -> None:
    assert b"allow: GET, HEAD, POST\r\n" in await ask(port, "DELETE /a")
    answer = await ask(port, "HEAD /b")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"allow: POST\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_an_answer_is_dated_when_it_begins(port: int) -> None:
    """Never before what it tells of: looked at until a second has passed, since dates are in whole ones."""
    told: set[datetime] = set()
    while len(told) < 2:
        head, body = (await ask(port, "GET /now")).split(b"\r\n\r\n")
        [date] = [line[6:] for line in head.decode().split("\r\n") if line.lower().startswith("date: ")]
        made = datetime.fromisoformat(body.decode().strip('"'))
        assert made <= parsedate_to_datetime(date)
        told.add(made)
