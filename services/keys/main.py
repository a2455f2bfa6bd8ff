"""Composition root of the keys service, and the commands that make an owner or a key on the server itself.

Each role imports what it runs and no more: a worker starts in half the time that HTTP would take to load.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.keys import domain, store
from services.keys.domain import ADMIN, Key, NewSecret, Owner, Wanted
from services.keys.settings import Settings
from shared.events.keys import UNLIMITED
from shared.eventstore import Meta, NewEvent, handle, reserve_id
from shared.ids import Secret
from shared.postgres import BATCH_STATEMENT, MIGRATIONS, Connection, migrate, open_pool, transaction
from shared.process import Apart, run_role, until_signalled
from shared.telemetry import internal_server

_SERVER = Meta(actor="server", reason="made on the server")


def main() -> None:
    """Runs the role that the command line names."""
    run_role("keys", Settings, {"migrate": _migrate, "api": _api, "worker": _worker})


async def _migrate(settings: Settings) -> None:
    own = Path(__file__).parent / "migrations"
    await migrate(settings.database, [MIGRATIONS / "eventstore", MIGRATIONS / "consumer", own])


async def _api(settings: Settings) -> None:
    import httpx2

    from services.keys import api
    from services.keys.propagation import Propagation
    from shared.http import serve

    propagation = Propagation(settings.kafka)
    async with (
        open_pool(settings.database) as pool,
        # Without a bound of its own, which one owner's requests could fill for all: usage has one for each owner.
        httpx2.AsyncClient(base_url=settings.usage_url, timeout=3.0, limits=httpx2.Limits()) as usage,
    ):
        context = api.Context(settings, pool, propagation, usage)
        await serve("keys", settings, api.router, context, propagation.run, checks=propagation.checks())


async def _worker(settings: Settings) -> None:
    from services.keys.worker import PUBLICATION, usage_consumer
    from shared.relay.loop import Relay

    relay = Relay(settings, settings.database, PUBLICATION)
    async with open_pool(settings.database, size=2, statement=BATCH_STATEMENT) as pool:
        usage = usage_consumer(settings, pool)
        # Totals that make no sense must not keep revocations from the edges.
        consumer = Apart(usage.run, usage.checks())
        checks = relay.checks() | consumer.checks()
        async with internal_server(settings.internal_host, settings.internal_port, checks):
            await until_signalled(relay.run, consumer.run)


async def create_owner(
    settings: Settings, *, name: str, secret: Secret, command_id: uuid.UUID, admin: bool, limited: bool
) -> tuple[int, int]:
    """Makes an owner and its first key by the secret's hash; returns both ids. A retry with one `command_id` changes nothing."""
    async with open_pool(settings.database, size=1) as pool:
        async with transaction(pool) as connection:
            owner_id = await reserve_id(connection, "owner_ids", command_id)

        async def decide(_: Connection, owner: Owner | None) -> Sequence[NewEvent]:
            return [] if owner else [NewEvent(domain.create_owner(owner_id, name, now=datetime.now(UTC)))]

        await handle(pool, store.OWNERS, f"owner-{owner_id}", decide, _SERVER)
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
    """Makes a key of an owner by the secret's hash, without a creator's bounds; returns its id. Retries as above."""
    parts = NewSecret(secret.hash.hex(), secret.prefix, secret.last_four)
    wanted = Wanted(
        name=name,
        permissions=frozenset({ADMIN}) if admin else frozenset(),
        limits=None if limited else UNLIMITED,
    )
    async with open_pool(settings.database, size=1) as pool:
        async with transaction(pool) as connection:
            key_id = await reserve_id(connection, "key_ids", command_id)

        async def decide(connection: Connection, key: Key | None) -> Sequence[NewEvent]:
            if key is not None:
                return []
            owner, held = await store.owner_for_update(connection, owner_id)
            created = domain.create(key_id, owner, None, wanted, parts, held_keys=held, now=datetime.now(UTC))
            return [NewEvent(created, {"hash": parts.hash})]

        await handle(pool, store.KEYS, f"key-{key_id}", decide, _SERVER)
    return key_id
