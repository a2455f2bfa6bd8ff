"""HTTP of the usage service, inside the platform only: what keys shows of a key's requests, for the caller it passes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from services.usage import store
from shared.api import Caller, context, path_id, timestamp
from shared.identity import Identity
from shared.metered import ApiCall, MeteredRequest, MeteredRequestList, RequestPaged
from shared.postgres import Connection, Pool, transaction
from shared.turns import Turns

router = APIRouter()
_LONGEST = 1.8


@dataclass(frozen=True)
class Context:
    """What the routes work with, made by the composition root."""

    pool: Pool
    turns: Turns


Ctx = Annotated[Context, Depends(context)]


KeyId = Annotated[int, path_id("key_id", "No such API key.")]


@router.get("/keys/{key_id}/calls")
async def get_calls(
    key_id: KeyId, caller: Caller, ctx: Ctx, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[ApiCall]:
    """The key's last calls, newest first; none of a key that is not the caller's."""
    async with ctx.turns.of(caller.owner_id), transaction(ctx.pool, longest=_LONGEST) as connection:
        if not await _rows(connection, caller, key_id):
            return []
        calls = await store.last_calls(connection, key_id, limit)
    return [ApiCall(**_shown(call)) for call in calls]


@router.get("/keys/{key_id}/usage")
async def get_usage(key_id: KeyId, caller: Caller, ctx: Ctx, page: RequestPaged) -> MeteredRequestList:
    """All metered requests of the key, newest first; none of a key that is not the caller's."""
    async with ctx.turns.of(caller.owner_id), transaction(ctx.pool, longest=_LONGEST) as connection:
        total = await _rows(connection, caller, key_id)
        wanted = page.offset < total
        found = await store.requests(connection, key_id, page.before, page.offset, page.size) if wanted else []
    usage = [MeteredRequest(**_shown(row), request_id=row.request_id, decision=row.decision) for row in found]
    return MeteredRequestList(usage=usage, total=total, page=page.page, size=page.size)


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
