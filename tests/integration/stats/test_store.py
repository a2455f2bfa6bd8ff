"""The dashboard's counts are what there is to count, and nobody counts it."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from services.stats import store
from services.stats.domain import Ticket
from shared.postgres import MIGRATIONS, connect, migrate, open_pool, transaction
from tests.support.migrations import up_to

pytestmark = pytest.mark.anyio
OWN = Path(store.__file__).parent / "migrations"
NOON = datetime(2024, 3, 21, 12, tzinfo=UTC)


def _ticket(random: Random) -> Ticket:
    """One of some tickets, each always of the same owner."""
    number = random.randrange(40)
    return Ticket(number, number % 3, "x", random.choice(["open", "resolved", "closed"]), NOON)


async def test_the_counts_follow_the_tickets_and_need_none_of_them(database: str) -> None:
    """Also of two consumers at once, whose tickets have the same owners."""
    await migrate(database, [MIGRATIONS / "consumer", OWN])
    random = Random(7)
    held: dict[int, Ticket] = {}
    async with open_pool(database, size=2) as pool:
        for _ in range(30):
            batch = {ticket.id: ticket for ticket in (_ticket(random) for _ in range(random.randrange(6)))}
            parts = [[t for t in batch.values() if t.id % 2 == part] for part in (0, 1)]

            async def save(tickets: list[Ticket]) -> None:
                async with transaction(pool) as connection:
                    await store.save_tickets(connection, tickets)

            await asyncio.gather(*map(save, parts))
            held |= batch
        async with transaction(pool) as connection:
            await connection.execute("ALTER TABLE tickets RENAME TO not_looked_at")
            found = {owner: await store.ticket_counts(connection, owner) for owner in range(4)}
    counts = Counter((ticket.owner_id, ticket.status == "open") for ticket in held.values())
    assert found == {owner: (counts[owner, True], counts[owner, False]) for owner in range(4)}


async def test_tickets_that_were_there_are_counted_once(database: str, tmp_path: Path) -> None:
    await migrate(database, [MIGRATIONS / "consumer", up_to("0001", OWN, tmp_path)])
    async with await connect(database) as connection:
        await connection.execute(
            "INSERT INTO tickets SELECT n, n % 2, 'x', CASE WHEN n <= 4 THEN 'open' ELSE 'closed' END, now()"
            " FROM generate_series(1, 10) AS n"
        )
        await migrate(database, [MIGRATIONS / "consumer", OWN])
        assert [await store.ticket_counts(connection, owner) for owner in range(2)] == [(2, 3), (2, 3)]
