"""The only SQL of the keys service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from services.keys.domain import key as keys
from services.keys.domain import owner as owners
from services.keys.domain.key import Key
from services.keys.domain.owner import Owner
from shared.errors import NotFound
from shared.events.keys import EVENTS, KeyState, OwnerState
from shared.events.requests import KeyUsage
from shared.eventstore import Change, Stream, registry
from shared.postgres import Connection
from shared.relay.publication import State


@dataclass(frozen=True)
class Listed:
    """A key with what the usage service has told of it."""

    key: Key
    usage_count: int
    last_used: datetime | None


async def owner_for_update(connection: Connection, owner_id: int) -> tuple[Owner, int]:
    """The owner, locked against other creations, and how many keys it holds. `NotFound` when there is none."""
    row = await (await connection.execute("SELECT * FROM owners WHERE id = %s FOR UPDATE", [owner_id])).fetchone()
    if row is None:
        raise NotFound("No such owner.")
    return _owner(row), int(row["keys"])


async def key_and_owner(connection: Connection, key_id: int) -> tuple[Key, Owner] | None:
    """The key, in whatever status, and its owner."""
    if (found := await get_key(connection, key_id)) is None:
        return None
    query = "SELECT * FROM owners WHERE id = %s"
    row = await (await connection.execute(query, [found.key.owner_id])).fetchone()
    return (found.key, _owner(row)) if row else None


async def list_keys(connection: Connection, owner_id: int, offset: int, size: int) -> tuple[list[Listed], int]:
    """A page of the owner's keys by id, and how many there are in all."""
    row = await (await connection.execute("SELECT keys FROM owners WHERE id = %s", [owner_id])).fetchone()
    total = int(row["keys"]) if row else 0
    if offset >= total:
        return [], total
    rows = await connection.execute(
        "SELECT keys.*, coalesce(usage_count, 0) AS usage_count, last_used FROM keys"
        " LEFT JOIN key_usage ON key_id = id"
        " WHERE owner_id = %s AND status <> 'deleted' ORDER BY id LIMIT %s OFFSET %s",
        [owner_id, size, offset],
    )
    return [_listed(row) async for row in rows], total


async def get_key(connection: Connection, key_id: int) -> Listed | None:
    """The key, whoever's and in whatever status."""
    query = (
        "SELECT keys.*, coalesce(usage_count, 0) AS usage_count, last_used FROM keys"
        " LEFT JOIN key_usage ON key_id = id WHERE id = %s"
    )
    row = await (await connection.execute(query, [key_id])).fetchone()
    return _listed(row) if row else None


async def states_of(connection: Connection, streams: Sequence[str]) -> list[State]:
    """The states that the relay publishes for these streams."""
    keys = [int(stream[4:]) for stream in streams if stream.startswith("key-")]
    owners = [int(stream[6:]) for stream in streams if stream.startswith("owner-")]
    key_rows = await (await connection.execute("SELECT * FROM keys WHERE id = ANY(%s)", [keys])).fetchall()
    owner_rows = await (await connection.execute("SELECT * FROM owners WHERE id = ANY(%s)", [owners])).fetchall()
    return [State(f"key-{row['id']}", row["version"], KeyState.model_validate(row["state"])) for row in key_rows] + [
        State(f"owner-{row['id']}", row["version"], OwnerState(id=row["id"], status=row["status"]))
        for row in owner_rows
    ]


async def save_usage(connection: Connection, totals: Sequence[tuple[int, KeyUsage]]) -> None:
    """Takes the (epoch, totals) that are newer than what is held; each key at most once."""
    await connection.execute(
        "INSERT INTO key_usage (key_id, epoch, usage_count, last_used)"
        " SELECT * FROM unnest(%s::bigint[], %s::integer[], %s::bigint[], %s::timestamptz[])"
        " ON CONFLICT (key_id) DO UPDATE SET epoch = excluded.epoch, usage_count = excluded.usage_count,"
        " last_used = excluded.last_used"
        " WHERE (excluded.epoch, excluded.usage_count) > (key_usage.epoch, key_usage.usage_count)",
        [
            [total.key_id for _, total in totals],
            [epoch for epoch, _ in totals],
            [total.usage_count for _, total in totals],
            [total.last_used for _, total in totals],
        ],
    )


def _listed(row: dict[str, Any]) -> Listed:
    return Listed(_key(row), row["usage_count"], row["last_used"])


def _key(row: dict[str, Any]) -> Key:
    state = KeyState.model_validate(row["state"])
    return Key(
        id=row["id"],
        owner_id=row["owner_id"],
        name=row["name"],
        description=row["description"],
        status=row["status"],
        permissions=frozenset(state.permissions),
        limits=state.limits,
        expires_at=state.expires_at,
        addresses=state.addresses,
        prefix=row["state"]["prefix"],
        last_four=row["state"]["last_four"],
        hashes=state.hashes,
        created_at=row["created_at"],
    )


def _owner(row: dict[str, Any]) -> Owner:
    return Owner(row["id"], row["name"], row["status"], row["max_keys"])


async def _read_key(connection: Connection, stream: str) -> tuple[Key, int] | None:
    query = "SELECT * FROM keys WHERE id = %s"
    row = await (await connection.execute(query, [int(stream.removeprefix("key-"))])).fetchone()
    return (_key(row), row["version"]) if row else None


async def _read_owner(connection: Connection, stream: str) -> tuple[Owner, int] | None:
    query = "SELECT * FROM owners WHERE id = %s"
    row = await (await connection.execute(query, [int(stream.removeprefix("owner-"))])).fetchone()
    return (_owner(row), row["version"]) if row else None


async def _project_key(connection: Connection, change: Change[Key]) -> None:
    key = change.after
    state = KeyState(
        id=key.id,
        owner_id=key.owner_id,
        status=key.status,
        permissions=tuple(sorted(key.permissions)),
        limits=key.limits,
        expires_at=key.expires_at,
        addresses=key.addresses,
        hashes=key.hashes,
    )
    await connection.execute(
        "INSERT INTO keys (id, version, owner_id, name, description, status, created_at, state)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET version = excluded.version,"
        " name = excluded.name, description = excluded.description, status = excluded.status, state = excluded.state",
        [
            key.id,
            change.version,
            key.owner_id,
            key.name,
            key.description,
            key.status,
            key.created_at,
            Jsonb(state.model_dump(mode="json") | {"prefix": key.prefix, "last_four": key.last_four}),
        ],
    )
    await connection.execute(
        "INSERT INTO key_hashes (hash, key_id) SELECT hash, %(id)s FROM unnest(%(hashes)s::bytea[]) AS hash"
        " WHERE NOT EXISTS (SELECT FROM key_hashes AS had WHERE had.hash = hash.hash AND had.key_id = %(id)s)",
        {"id": key.id, "hashes": [bytes.fromhex(known.hash) for known in key.hashes]},
    )
    if added := _held(key) - _held(change.before):
        await connection.execute("UPDATE owners SET keys = keys + %s WHERE id = %s", [added, key.owner_id])


def _held(key: Key | None) -> bool:
    return key is not None and key.status != "deleted"


async def _project_owner(connection: Connection, change: Change[Owner]) -> None:
    owner = change.after
    await connection.execute(
        "INSERT INTO owners (id, version, name, status, max_keys) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET version = excluded.version, status = excluded.status",
        [owner.id, change.version, owner.name, owner.status, owner.max_keys],
    )


_REGISTRY = registry(EVENTS)
KEYS: Stream[Key] = Stream(_REGISTRY, keys.apply, _project_key, _read_key)
OWNERS: Stream[Owner] = Stream(_REGISTRY, owners.apply, _project_owner, _read_owner)
