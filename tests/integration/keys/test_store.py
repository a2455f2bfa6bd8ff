"""What commands read is what the events tell, whatever was commanded; and the counts are what there is to count."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.keys import store
from services.keys.domain import key as keys
from services.keys.domain import owner as owners
from services.keys.domain.key import By, CreateKey, DeleteKey, Key, NewSecret, UpdateKey
from services.keys.domain.owner import CreateOwner, Owner
from shared.errors import Problem
from shared.events import EventData, NewEvent
from shared.events.keys import KeyRevoked, KeyRotated, OwnerResumed, OwnerSuspended
from shared.eventstore import Meta, Stream, fold, handle, load
from shared.postgres import MIGRATIONS, Connection, Pool, connect, migrate, open_pool, transaction
from tests.support.migrations import up_to
from tests.support.stack import Servers

NOW = datetime(2024, 3, 20, 12, 0, 0, 123456, tzinfo=UTC)
META = Meta(actor="test")
OWN = Path(store.__file__).parent / "migrations"
_ids = itertools.count(1)
_hashes = (f"{number:064x}" for number in itertools.count(1))

_texts = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_wanted: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"description": _texts},
    optional={
        "permissions": st.frozensets(st.sampled_from(["tickets:read", "a"])),
        "limits": st.dictionaries(st.sampled_from(["minute", "hour", "day"]), st.none() | st.integers(1, 10**9)),
        "expires_at": st.datetimes(datetime(2024, 4, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    },
)
_changes = st.one_of(
    st.fixed_dictionaries({}, optional={"name": st.text("xyz"), "description": _texts, "is_active": st.booleans()}),
    st.sampled_from(["delete", "revoke", "rotate", "suspend", "resume"]),
)


def test_what_commands_read_is_what_the_events_tell(servers: Servers) -> None:
    with servers.fresh_database() as dsn:
        asyncio.run(migrate(dsn, [MIGRATIONS / "eventstore", MIGRATIONS / "consumer", OWN]))

        @given(st.lists(_wanted, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 2), _changes), max_size=12))
        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def told(wanted: list[dict[str, Any]], changes: list[tuple[int, Any]]) -> None:
            asyncio.run(_live(dsn, wanted, changes))

        told()


async def _live(dsn: str, wanted: list[dict[str, Any]], changes: list[tuple[int, Any]]) -> None:
    async with open_pool(dsn, size=1) as pool:
        owner_id = next(_ids)
        await _command(
            pool, store.OWNERS, f"owner-{owner_id}", lambda o: owners.decide(CreateOwner(owner_id, "Ada", NOW), o)
        )
        made = [await _create(pool, owner_id, each) for each in wanted]
        for number, change in changes:
            key_id = made[number % len(made)]
            if change in ("suspend", "resume"):
                event: EventData = OwnerSuspended() if change == "suspend" else OwnerResumed()
                await _command(pool, store.OWNERS, f"owner-{owner_id}", lambda _, event=event: [NewEvent(event)])
            else:
                await _command(pool, store.KEYS, f"key-{key_id}", lambda key, change=change: _events(change, key))
            await _assert_same(pool, store.KEYS, f"key-{key_id}")
        await _assert_same(pool, store.OWNERS, f"owner-{owner_id}")
        async with transaction(pool) as connection:
            listed, total = await store.list_keys(connection, owner_id, 0, 100)
            assert len(listed) == total == (await store.owner_for_update(connection, owner_id))[1]


async def _create(pool: Pool, owner_id: int, wanted: dict[str, Any]) -> int:
    key_id = next(_ids)

    async def decide(connection: Connection, key: Key | None) -> list[NewEvent]:
        owner, held = await store.owner_for_update(connection, owner_id)
        secret = NewSecret(next(_hashes), "kl_live_", "aB3x")
        return keys.decide(CreateKey(None, key_id, owner, held, secret, NOW, "new", **wanted), key)

    await handle(pool, store.KEYS, f"key-{key_id}", decide, META)
    await _assert_same(pool, store.KEYS, f"key-{key_id}")
    return key_id


def _events(change: Any, key: Key | None) -> Sequence[NewEvent]:
    assert key is not None
    by = By(key, Owner(key.owner_id, "Ada", "active", 1000))
    if isinstance(change, dict):
        return keys.decide(UpdateKey(by, **change), key)
    if change == "delete":
        return keys.decide(DeleteKey(by), key)
    # By later issues.
    if change == "revoke":
        return [NewEvent(KeyRevoked())]
    return [NewEvent(KeyRotated(prefix="kl_live_", last_four="1111", old_valid_until=NOW), {"hash": next(_hashes)})]


async def _command(pool: Pool, kind: Stream[Any], stream: str, command: Any) -> None:
    async def decide(_: Connection, state: Any) -> Sequence[NewEvent]:
        events: Sequence[NewEvent] = command(state)
        return events

    with suppress(Problem):
        await handle(pool, kind, stream, decide, META)


async def _assert_same(pool: Pool, kind: Stream[Any], stream: str) -> None:
    async with transaction(pool) as connection:
        loaded, folded = await load(connection, kind, stream), await fold(connection, kind, stream)
    assert (loaded.state, loaded.version, loaded.missed) == (folded.state, folded.version, ())


def test_keys_that_were_there_are_counted_once(servers: Servers, tmp_path: Path) -> None:
    async def look(dsn: str) -> None:
        shared = [MIGRATIONS / "eventstore", MIGRATIONS / "consumer"]
        await migrate(dsn, [*shared, up_to("0001", OWN, tmp_path)])
        async with await connect(dsn) as connection:
            await connection.execute(
                "INSERT INTO owners SELECT n, 1, 'Ada', 'active', 10 FROM generate_series(1, 2) AS n"
            )
            await connection.execute(
                "INSERT INTO keys SELECT n, 1, 1, 'x', null, CASE WHEN n <= 4 THEN 'active' ELSE 'deleted' END, now(), '{}'"
                " FROM generate_series(1, 10) AS n"
            )
            await migrate(dsn, [*shared, OWN])
            assert [(await store.owner_for_update(connection, owner))[1] for owner in (1, 2)] == [4, 0]
            await connection.execute("ALTER TABLE keys RENAME TO not_looked_at")
            assert await store.list_keys(connection, 1, 10, 10) == ([], 4)

    with servers.fresh_database() as dsn:
        asyncio.run(look(dsn))
