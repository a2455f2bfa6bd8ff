"""The only SQL of the tickets service."""

from __future__ import annotations

from typing import Any

from services.tickets.domain import Reply, Ticket, TicketStatus, apply_ticket
from shared.events import EventData
from shared.events.tickets import EVENTS
from shared.eventstore import Stream, registry
from shared.postgres import Connection


async def list_tickets(
    connection: Connection, owner_id: int, status: TicketStatus | None, offset: int, size: int
) -> tuple[list[Ticket], int]:
    """A page of the owner's tickets by id (of one status, if given), without replies; and how many there are in all."""
    values = {"owner": owner_id, "status": status, "offset": offset, "size": size}
    query = (
        "SELECT * FROM tickets WHERE owner_id = %(owner)s AND (%(status)s::text IS NULL OR status = %(status)s)"
        " ORDER BY id LIMIT %(size)s OFFSET %(offset)s"
    )
    rows = await (await connection.execute(query, values)).fetchall()
    query = (
        "SELECT count(*) AS total FROM tickets"
        " WHERE owner_id = %(owner)s AND (%(status)s::text IS NULL OR status = %(status)s)"
    )
    total = await (await connection.execute(query, values)).fetchone()
    assert total is not None
    return [_ticket(row, ()) for row in rows], int(total["total"])


async def get_ticket(connection: Connection, ticket_id: int) -> Ticket | None:
    """The ticket with its replies, whoever's."""
    row = await (await connection.execute("SELECT * FROM tickets WHERE id = %s", [ticket_id])).fetchone()
    if row is None:
        return None
    query = "SELECT id, body, created_at FROM replies WHERE ticket_id = %s ORDER BY id"
    replies = await (await connection.execute(query, [ticket_id])).fetchall()
    return _ticket(row, tuple(Reply(**reply) for reply in replies))


def _ticket(row: dict[str, Any], replies: tuple[Reply, ...]) -> Ticket:
    return Ticket(row["id"], row["owner_id"], row["subject"], row["status"], row["created_at"], replies)


async def _project(connection: Connection, ticket: Ticket, version: int) -> None:
    await connection.execute(
        "INSERT INTO tickets (id, version, owner_id, subject, status, created_at) VALUES (%s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET version = excluded.version, subject = excluded.subject,"
        " status = excluded.status",
        [ticket.id, version, ticket.owner_id, ticket.subject, ticket.status, ticket.created_at],
    )
    await _project_replies(connection, ticket)


async def _project_replies(connection: Connection, ticket: Ticket) -> None:
    query = "SELECT coalesce(max(id), 0) AS held FROM replies WHERE ticket_id = %s"
    row = await (await connection.execute(query, [ticket.id])).fetchone()
    assert row is not None
    insert = "INSERT INTO replies (ticket_id, id, body, created_at) VALUES (%s, %s, %s, %s)"
    for reply in ticket.replies:
        if reply.id > row["held"]:
            await connection.execute(insert, [ticket.id, reply.id, reply.body, reply.created_at])


def _apply(ticket: Ticket | None, event: EventData, _private: dict[str, Any] | None) -> Ticket:
    return apply_ticket(ticket, event)


TICKETS: Stream[Ticket] = Stream(registry(EVENTS), _apply, _project)
