"""What a service's application makes of bodies, for routes that take one and for those that don't."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import APIRouter
from pydantic import BaseModel

from shared.http import create_app

pytestmark = pytest.mark.anyio
router = APIRouter()


class Body(BaseModel):
    name: str


@router.post("/with")
async def with_body(body: Body) -> str:
    return body.name


@router.post("/without")
async def without_body() -> str:
    return "done"


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app("test", None)
    app.include_router(router)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service") as opened:
        yield opened


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "application/x+json", ""])
async def test_a_body_is_json_and_says_so(client: httpx2.AsyncClient, media: str) -> None:
    answer = await client.post("/with", content=b'{"name": "x"}', headers={"Content-Type": media})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    answer = await client.post(
        "/with", content=b'{"name": "x"}', headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert (answer.status_code, answer.json()) == (200, "x")


async def test_a_body_that_is_missing_or_too_large(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/with")).json()["code"] == "invalid"

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * 65536

    large = b" " * (1024 * 1024 + 1)
    for content in (large, drip()):
        answer = await client.post("/with", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("content", [b"", b"{", b"name=x"])
async def test_where_no_body_is_wanted_none_is_judged(client: httpx2.AsyncClient, content: bytes) -> None:
    for media in ("text/plain", "application/json"):
        answer = await client.post("/without", content=content, headers={"Content-Type": media})
        assert (answer.status_code, answer.json()) == (200, "done")
