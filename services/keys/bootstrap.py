"""Owners and keys made on the server itself, without a caller: the first key, and the way back in when the last one is lost."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from services.keys import store
from services.keys.domain import key, owner
from services.keys.domain.key import ADMIN, CreateKey, Key, NewSecret
from services.keys.domain.owner import CreateOwner, Owner
from services.keys.settings import Settings
from shared.events import NewEvent
from shared.events.keys import UNLIMITED
from shared.eventstore import Meta, handle, reserve_id
from shared.ids import Secret
from shared.postgres import Connection, open_pool, transaction


async def create_owner(
    settings: Settings, *, name: str, secret: Secret, command_id: uuid.UUID, admin: bool, limited: bool
) -> tuple[int, int]:
    """Makes an owner and its first key by the secret's hash; returns both ids. A retry with one `command_id` changes
    nothing, for as long as `shared.eventstore.reserve_id` remembers it.
    """
    async with open_pool(settings.database, size=1) as pool:
        async with transaction(pool) as connection:
            owner_id = await reserve_id(connection, "owner_ids", command_id)

        async def decide(_: Connection, found: Owner | None) -> Sequence[NewEvent]:
            return owner.decide(CreateOwner(owner_id, name, datetime.now(UTC)), found)

        await handle(pool, store.OWNERS, f"owner-{owner_id}", decide, _meta(command_id))
    key_id = await create_key(
        settings,
        owner_id=owner_id,
        name=f"{name}'s first key",
        secret=secret,
        command_id=uuid.uuid5(command_id, "key"),
        admin=admin,
        limited=limited,
    )
    return owner_id, key_id


async def create_key(
    settings: Settings,
    *,
    owner_id: int,
    name: str,
    secret: Secret,
    command_id: uuid.UUID,
    admin: bool = False,
    limited: bool = True,
) -> int:
    """Makes a key of an owner by the secret's hash, without a creator's bounds; returns its id. Retries as above.

    `Conflict` when the owner is suspended or holds as many keys as it may; `NotFound` when there is no such owner.
    """
    async with open_pool(settings.database, size=1) as pool:
        async with transaction(pool) as connection:
            key_id = await reserve_id(connection, "key_ids", command_id)

        async def decide(connection: Connection, found: Key | None) -> Sequence[NewEvent]:
            holder, held = await store.owner_for_update(connection, owner_id)
            command = CreateKey(
                by=None,
                id=key_id,
                owner=holder,
                held=held,
                secret=NewSecret(secret.hash.hex(), secret.prefix, secret.last_four),
                now=datetime.now(UTC),
                name=name,
                permissions=frozenset({ADMIN}) if admin else None,
                limits={} if limited else UNLIMITED.model_dump(),
            )
            return key.decide(command, found)

        await handle(pool, store.KEYS, f"key-{key_id}", decide, _meta(command_id))
    return key_id


def _meta(command_id: uuid.UUID) -> Meta:
    return Meta("server", "made on the server", correlation_id=str(command_id), causation_id=str(command_id))
