"""HTTP of the keys service: parse, command, answer (API documentation, API Key Management)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import httpx2
import structlog
from fastapi import APIRouter, Depends, Response
from pydantic import TypeAdapter

from services.keys import store
from services.keys.api.models import (
    ApiKey,
    ApiKeyDetails,
    ApiKeyList,
    CreateApiKey,
    CreatedApiKey,
    Message,
    UpdateApiKey,
)
from services.keys.domain import key
from services.keys.domain.key import By, Command, CreateKey, DeleteKey, Key, NewSecret, UpdateKey
from services.keys.propagation import HEADER, Propagation
from services.keys.settings import Settings
from shared.api import (
    LOCATION,
    Caller,
    OwnerParam,
    Paged,
    context,
    path_id,
    timestamp,
)
from shared.errors import Problem, Unavailable
from shared.events import NewEvent
from shared.eventstore import Handled, Meta, handle, reserve_id
from shared.identity import Identity
from shared.ids import new_secret
from shared.metered import ApiCall, MeteredRequestList, RequestPaged
from shared.partitions import partition_for
from shared.postgres import Connection, Pool, transaction

router = APIRouter(prefix="/api/v1/api-keys", tags=["API keys"])
_log = structlog.get_logger()


@dataclass(frozen=True)
class Context:
    """What the routes work with, made by the composition root."""

    settings: Settings
    pool: Pool
    propagation: Propagation
    usage: httpx2.AsyncClient


Ctx = Annotated[Context, Depends(context)]


KeyId = Annotated[int, path_id("api_key_id", "No such API key.")]

_PROPAGATION: dict[str, Any] = {
    HEADER: {
        "description": "How many edges are live and how many of them confirmed the change within the wait (1 s by"
        " default); `silent` names edges that were not waited for. `edges=unknown`: Kafka is away.",
        "schema": {"type": "string"},
        "example": "edges=2; confirmed=2; ms=37",
    }
}


_MISSING: dict[str, Any] = {
    "Keyledger-Missing": {
        "description": "What the answer lacks since the service that knows it is away.",
        "schema": {"type": "string", "enum": ["usage"]},
    }
}


Answer = TypeVar("Answer")
_CALLS = TypeAdapter(list[ApiCall])
_REQUESTS = TypeAdapter(MeteredRequestList)


@router.post("", status_code=201, responses={201: {"headers": LOCATION | _PROPAGATION}, 404: {}})
async def create_key(
    body: CreateApiKey, caller: Caller, ctx: Ctx, response: Response, owner: OwnerParam = None
) -> CreatedApiKey:
    """Makes a key, shows its secret once, and returns when the live edges know it."""
    owner_id = caller.owner(owner)
    secret = new_secret(ctx.settings.environment)
    async with transaction(ctx.pool) as connection:
        key_id = await reserve_id(connection, "key_ids")

    async def command(connection: Connection, by: By, now: datetime) -> CreateKey:
        found, held = await store.owner_for_update(connection, owner_id)
        return CreateKey(
            by=by,
            id=key_id,
            owner=found,
            held=held,
            secret=NewSecret(secret.hash.hex(), secret.prefix, secret.last_four),
            now=now,
            name=body.name,
            description=body.description,
            permissions=None if body.permissions is None else frozenset(body.permissions),
            limits=body.limits.model_dump(exclude_unset=True) if body.limits else {},
            expires_at=body.expires_at,
        )

    done = await _carry_out(ctx, caller, response, key_id, command)
    response.headers["Location"] = f"{router.prefix}/{key_id}"
    response.headers["Cache-Control"] = "no-store"
    shown = _out(done.state, 0, None)
    return CreatedApiKey(key=secret.text, **shown.model_dump())


@router.get("")
async def list_keys(caller: Caller, ctx: Ctx, page: Paged, owner: OwnerParam = None) -> ApiKeyList:
    """The caller's keys by id."""
    owner_id = caller.owner(owner)
    async with transaction(ctx.pool) as connection:
        found, total = await store.list_keys(connection, owner_id, page.offset, page.size)
    shown = [_out(item.key, item.usage_count, item.last_used) for item in found]
    return ApiKeyList(api_keys=shown, total=total, page=page.page, size=page.size)


@router.get("/{api_key_id}", responses={200: {"headers": _MISSING}})
async def get_key(key_id: KeyId, caller: Caller, ctx: Ctx, response: Response) -> ApiKeyDetails:
    """A key and its last calls; when those can't be had, without them and with `Keyledger-Missing: usage`."""
    found = await _visible(ctx, caller, key_id)
    calls: list[ApiCall] = []
    try:
        calls = await _ask_usage(ctx, caller, f"/keys/{key_id}/calls", {"limit": 100}, _CALLS)
    except Problem:
        response.headers["Keyledger-Missing"] = "usage"
    shown = _out(found.key, found.usage_count, found.last_used)
    return ApiKeyDetails(**shown.model_dump(), usage=calls)


@router.get("/{api_key_id}/usage")
async def get_key_usage(key_id: KeyId, caller: Caller, ctx: Ctx, page: RequestPaged) -> MeteredRequestList:
    """All metered requests of the key, newest first."""
    await _visible(ctx, caller, key_id)
    return await _ask_usage(ctx, caller, f"/keys/{key_id}/usage", page.query, _REQUESTS)


@router.put("/{api_key_id}", responses={200: {"headers": _PROPAGATION}})
async def update_key(key_id: KeyId, body: UpdateApiKey, caller: Caller, ctx: Ctx, response: Response) -> ApiKey:
    """Changes name, description or activity; returns when the live edges have applied it."""

    async def command(_: Connection, by: By, _now: datetime) -> UpdateKey:
        return UpdateKey(by, **body.model_dump(exclude_unset=True))

    done = await _carry_out(ctx, caller, response, key_id, command)
    found = await _visible(ctx, caller, key_id)
    return _out(done.state, found.usage_count, found.last_used)


@router.delete("/{api_key_id}", responses={200: {"headers": _PROPAGATION}})
async def delete_key(key_id: KeyId, caller: Caller, ctx: Ctx, response: Response) -> Message:
    """Deletes the key for good; returns when the live edges refuse it."""

    async def command(_: Connection, by: By, _now: datetime) -> DeleteKey:
        return DeleteKey(by)

    await _carry_out(ctx, caller, response, key_id, command)
    return Message(message="API key deleted successfully")


async def _carry_out(
    ctx: Context,
    caller: Identity,
    response: Response,
    key_id: int,
    command: Callable[[Connection, By, datetime], Awaitable[Command]],
) -> Handled[Key]:
    """Carries out what the caller asks for, if it is still good, and waits for the edges: also when nothing changed, since
    who tries again must not be told sooner.
    """

    async def decide(connection: Connection, found: Key | None) -> Sequence[NewEvent]:
        now = datetime.now(UTC)
        by = key.judge(await store.key_and_owner(connection, caller.key_id), now)
        return key.decide(await command(connection, by, now), found)

    done = await handle(ctx.pool, store.KEYS, f"key-{key_id}", decide, Meta.of(caller.actor))
    partition = partition_for(b"key-%d" % key_id, ctx.settings.partitions)
    receipt = await ctx.propagation.wait(partition, done.place, ctx.settings.confirmation_wait)
    response.headers[HEADER] = receipt.header()
    return done


async def _visible(ctx: Context, caller: Identity, key_id: int) -> store.Listed:
    async with transaction(ctx.pool) as connection:
        found = await store.get_key(connection, key_id)
    key.visible(found.key if found else None, caller.owner_id, admin=caller.admin)
    assert found is not None
    return found


async def _ask_usage(
    ctx: Context, caller: Identity, path: str, query: dict[str, int], answers: TypeAdapter[Answer]
) -> Answer:
    try:
        answer = await ctx.usage.get(path, params=query, headers={"Keyledger-Identity": caller.token})
        answer.raise_for_status()
        return answers.validate_json(answer.content)
    except (httpx2.HTTPError, ValueError) as error:
        _log.warning("usage can't be asked", error=str(error))
        raise Unavailable("Usage is not available.") from error


def _out(shown: Key, usage_count: int, last_used: datetime | None) -> ApiKey:
    return ApiKey(
        id=shown.id,
        name=shown.name,
        description=shown.description,
        is_active=shown.status == "active",
        created_at=timestamp(shown.created_at),
        last_used=timestamp(last_used) if last_used else None,
        usage_count=usage_count,
    )
