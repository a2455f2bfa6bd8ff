"""The only SQL of the tickets service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.tickets.domain import Ticket, apply
from shared.events import EventData
from shared.events.tickets import EVENTS, TicketOpened, TicketReplied, TicketStatus
from shared.eventstore import Change, Stream, registry
from shared.postgres import Connection

_STATUSES: tuple[TicketStatus, ...] = ("open", "resolved", "closed")


@dataclass(frozen=True)
class Reply:
    """One text of a ticket, numbered from 1 within it."""

    id: int
    body: str
    created_at: datetime


async def list_tickets(
    connection: Connection, owner_id: int, status: TicketStatus | None, offset: int, size: int
) -> tuple[list[Ticket], int]:
    """A page of the owner's tickets by id, of one status, if given; and how many there are in all."""
    query = "SELECT open, resolved, closed FROM ticket_counts WHERE owner_id = %s"
    counts = await (await connection.execute(query, [owner_id])).fetchone() or {}
    total = sum(counts.get(each, 0) for each in _STATUSES if status in (None, each))
    if offset >= total:
        return [], total
    which = "SELECT * FROM tickets WHERE owner_id = %(owner)s"
    if status is not None:
        which += " AND status = %(status)s"
    values = {"owner": owner_id, "status": status, "size": size, "offset": offset}
    rows = await connection.execute(which + " ORDER BY id LIMIT %(size)s OFFSET %(offset)s", values)
    return [_ticket(row) async for row in rows], total


async def get_ticket(connection: Connection, ticket_id: int) -> tuple[Ticket | None, list[Reply]]:
    """The ticket, whoever's, and its replies, oldest first."""
    row = await (await connection.execute("SELECT * FROM tickets WHERE id = %s", [ticket_id])).fetchone()
    if row is None:
        return None, []
    query = "SELECT id, body, created_at FROM replies WHERE ticket_id = %s ORDER BY id"
    return _ticket(row), [Reply(**reply) async for reply in await connection.execute(query, [ticket_id])]


def _ticket(row: dict[str, Any]) -> Ticket:
    return Ticket(row["id"], row["owner_id"], row["subject"], row["status"], row["created_at"], row["replies"])


async def _read(connection: Connection, stream: str) -> tuple[Ticket, int] | None:
    query = "SELECT * FROM tickets WHERE id = %s"
    row = await (await connection.execute(query, [int(stream.removeprefix("ticket-"))])).fetchone()
    return (_ticket(row), row["version"]) if row else None


async def _project(connection: Connection, change: Change[Ticket]) -> None:
    ticket = change.after
    await connection.execute(
        "INSERT INTO tickets (id, version, owner_id, subject, status, created_at, replies)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET version = excluded.version, subject = excluded.subject,"
        " status = excluded.status, replies = excluded.replies",
        [ticket.id, change.version, ticket.owner_id, ticket.subject, ticket.status, ticket.created_at, ticket.replies],
    )
    await _project_replies(connection, ticket.id, change.events)
    await _project_counts(connection, change.before, ticket)


async def _project_replies(connection: Connection, ticket_id: int, events: Sequence[EventData]) -> None:
    insert = "INSERT INTO replies (ticket_id, id, body, created_at) VALUES (%s, %s, %s, %s)"
    for event in events:
        match event:
            case TicketOpened() if event.body is not None:
                await connection.execute(insert, [ticket_id, 1, event.body, event.created_at])
            case TicketReplied():
                await connection.execute(insert, [ticket_id, event.id, event.body, event.created_at])


async def _project_counts(connection: Connection, before: Ticket | None, after: Ticket) -> None:
    if before is not None and before.status == after.status:
        return
    added = [(status == after.status) - (before is not None and status == before.status) for status in _STATUSES]
    await connection.execute(
        "INSERT INTO ticket_counts AS held (owner_id, open, resolved, closed) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (owner_id) DO UPDATE SET open = held.open + excluded.open,"
        " resolved = held.resolved + excluded.resolved, closed = held.closed + excluded.closed",
        [after.owner_id, *added],
    )


TICKETS: Stream[Ticket] = Stream(registry(EVENTS), apply, _project, _read)
