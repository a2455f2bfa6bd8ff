"""What commands read is what the events tell, whatever was commanded; and the counts are what there is to count."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.tickets import store
from services.tickets.domain import (
    By,
    CloseTicket,
    Command,
    OpenTicket,
    RenameTicket,
    ReopenTicket,
    ReplyToTicket,
    ResolveTicket,
    Ticket,
    decide,
)
from shared.errors import Problem
from shared.events import NewEvent
from shared.eventstore import Meta, fold, handle, load
from shared.postgres import MIGRATIONS, Connection, Pool, connect, migrate, open_pool, transaction
from tests.support.migrations import up_to
from tests.support.stack import Servers

NOW = datetime(2024, 3, 20, 12, 0, 0, 123456, tzinfo=UTC)
OWN = Path(store.__file__).parent / "migrations"
_ids = itertools.count(1)
_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
_changes: st.SearchStrategy[Callable[[By], Command]] = st.one_of(
    st.sampled_from([ResolveTicket, ReopenTicket, CloseTicket]),
    _texts.map(lambda text: lambda by: RenameTicket(by, text)),
    _texts.map(lambda text: lambda by: ReplyToTicket(by, text, NOW)),
)


def test_what_commands_read_is_what_the_events_tell(servers: Servers) -> None:
    with servers.fresh_database() as dsn:
        asyncio.run(migrate(dsn, [MIGRATIONS / "eventstore", OWN]))

        @given(st.lists(st.none() | _texts, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 2), _changes)))
        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def told(bodies: list[str | None], changes: list[tuple[int, Callable[[By], Command]]]) -> None:
            asyncio.run(_live(dsn, bodies, changes))

        told()


async def _live(dsn: str, bodies: list[str | None], changes: list[tuple[int, Callable[[By], Command]]]) -> None:
    async with open_pool(dsn, size=1) as pool:
        by = By(next(_ids))
        made = [next(_ids) for _ in bodies]
        for ticket_id, body in zip(made, bodies, strict=True):
            await _command(pool, ticket_id, OpenTicket(ticket_id, by.owner_id, "first", body, NOW))
        for number, change in changes:
            await _command(pool, made[number % len(made)], change(by))
        async with transaction(pool) as connection:
            for status in (None, "open", "resolved", "closed"):
                listed, total = await store.list_tickets(connection, by.owner_id, status, 0, 100)
                assert len(listed) == total
                assert all(status in (None, ticket.status) for ticket in listed)
            for ticket_id in made:
                ticket, replies = await store.get_ticket(connection, ticket_id)
                assert ticket is not None
                assert [reply.id for reply in replies] == list(range(1, ticket.replies + 1))


async def _command(pool: Pool, ticket_id: int, command: Command) -> None:
    async def decided(_: Connection, ticket: Ticket | None) -> list[NewEvent]:
        return decide(command, ticket)

    stream = f"ticket-{ticket_id}"
    with suppress(Problem):
        await handle(pool, store.TICKETS, stream, decided, Meta(actor="test"))
    async with transaction(pool) as connection:
        loaded, folded = await load(connection, store.TICKETS, stream), await fold(connection, store.TICKETS, stream)
    assert (loaded.state, loaded.version, loaded.missed) == (folded.state, folded.version, ())


def test_nobody_counts(servers: Servers) -> None:
    """The total of a list, and a page behind it, need none of the tickets."""

    async def look(dsn: str) -> None:
        async with open_pool(dsn, size=1) as pool:
            for number in range(1, 4):
                await _command(pool, number, OpenTicket(number, 3, "x", None, NOW))
            await _command(pool, 1, ResolveTicket(By(3)))
            async with transaction(pool) as connection:
                await connection.execute("ALTER TABLE tickets RENAME TO not_looked_at")
                for status, total in ((None, 3), ("open", 2), ("resolved", 1), ("closed", 0)):
                    assert await store.list_tickets(connection, 3, status, 10, 10) == ([], total)

    with servers.fresh_database() as dsn:
        asyncio.run(migrate(dsn, [MIGRATIONS / "eventstore", OWN]))
        asyncio.run(look(dsn))


def test_tickets_that_were_there_are_counted_once(servers: Servers, tmp_path: Path) -> None:
    async def look(dsn: str) -> None:
        await migrate(dsn, [MIGRATIONS / "eventstore", up_to("0001", OWN, tmp_path)])
        async with await connect(dsn) as connection:
            await connection.execute(
                "INSERT INTO tickets SELECT n, 1, n % 2, 'x', CASE WHEN n <= 4 THEN 'open' ELSE 'closed' END, now()"
                " FROM generate_series(1, 10) AS n"
            )
            await connection.execute("INSERT INTO replies SELECT 7, n, 'x', now() FROM generate_series(1, 5) AS n")
            await migrate(dsn, [MIGRATIONS / "eventstore", OWN])
            assert [(await store.list_tickets(connection, 1, s, 0, 9))[1] for s in (None, "open", "closed")] == [
                5,
                2,
                3,
            ]
            ticket, replies = await store.get_ticket(connection, 7)
            assert ticket is not None
            assert ticket.replies == len(replies) == 5

    with servers.fresh_database() as dsn:
        asyncio.run(look(dsn))
