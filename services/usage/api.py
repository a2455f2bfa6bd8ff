"""HTTP of the usage service, inside the platform only: what keys shows of a key's requests, for the caller it passes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from services.usage import store
from shared.api import Caller, Page, context, number, timestamp
from shared.identity import Identity
from shared.postgres import Connection, Pool, transaction

router = APIRouter()


@dataclass(frozen=True)
class Context:
    """What the routes work with, made by the composition root."""

    pool: Pool


Ctx = Annotated[Context, Depends(context)]


async def _key_id(key_id: str) -> int:
    return number(key_id, "No such API key.")


async def _page(page: Annotated[int, Query(ge=1)] = 1, size: Annotated[int, Query(ge=1, le=1000)] = 10) -> Page:
    return Page(page, size)


KeyId = Annotated[int, Depends(_key_id)]
Paged = Annotated[Page, Depends(_page)]


class Call(BaseModel):
    """A call (API documentation, Get API Key Details: `usage[]`). `response_time` is in seconds."""

    id: int
    endpoint: str
    method: str
    status_code: int
    response_time: float
    created_at: str


class Metered(Call):
    """A metered request, let through or refused."""

    request_id: str
    decision: str


class Usage(BaseModel):
    """A page of a key's metered requests."""

    usage: list[Metered]
    total: int
    page: int
    size: int


@router.get("/keys/{key_id}/calls")
async def get_calls(
    key_id: KeyId, caller: Caller, ctx: Ctx, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[Call]:
    """The key's last calls, newest first; none of a key that is not the caller's."""
    async with transaction(ctx.pool) as connection:
        if not await _rows(connection, caller, key_id):
            return []
        calls = await store.last_calls(connection, key_id, limit)
    return [Call(**_shown(call)) for call in calls]


@router.get("/keys/{key_id}/usage")
async def get_usage(key_id: KeyId, caller: Caller, ctx: Ctx, page: Paged) -> Usage:
    """All metered requests of the key, newest first; none of a key that is not the caller's."""
    async with transaction(ctx.pool) as connection:
        total = await _rows(connection, caller, key_id)
        wanted = page.offset < total
        found = await store.requests(connection, key_id, page.offset, page.size) if wanted else []
    usage = [Metered(**_shown(row), request_id=row.request_id, decision=row.decision) for row in found]
    return Usage(usage=usage, total=total, page=page.page, size=page.size)


async def _rows(connection: Connection, caller: Identity, key_id: int) -> int:
    """How many requests of the key the caller may see."""
    owner, rows = await store.owner_and_rows(connection, key_id) or (0, 0)
    return rows if caller.admin or caller.owner_id == owner else 0


def _shown(row: store.Request) -> dict[str, Any]:
    return {
        "id": row.id,
        "endpoint": row.endpoint,
        "method": row.method,
        "status_code": row.status_code,
        "response_time": round(row.response_time, 6),
        "created_at": timestamp(row.time),
    }
