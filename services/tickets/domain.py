"""The life of tickets: what a command leads to, and what an event makes of the state. Pure.

A ticket is open, resolved (settled, still talked about) or closed (put away: nothing but reopening changes it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from shared.errors import Conflict, NotFound
from shared.events import EventData
from shared.events.tickets import (
    TicketClosed,
    TicketOpened,
    TicketRenamed,
    TicketReopened,
    TicketReplied,
    TicketResolved,
    TicketStatus,
)

MAX_REPLIES = 1000


@dataclass(frozen=True)
class Reply:
    """One text of a ticket, numbered from 1 within it."""

    id: int
    body: str
    created_at: datetime


@dataclass(frozen=True)
class Ticket:
    """A ticket after its events."""

    id: int
    owner_id: int
    subject: str
    status: TicketStatus
    created_at: datetime
    replies: tuple[Reply, ...] = ()


def open_ticket(ticket_id: int, owner_id: int, subject: str, body: str | None, *, now: datetime) -> TicketOpened:
    """A new ticket of `owner_id`; `body`, if there is one, is its first reply."""
    return TicketOpened(id=ticket_id, owner_id=owner_id, subject=subject, body=body, created_at=now)


def rename(ticket: Ticket, subject: str) -> list[EventData]:
    """The ticket under another subject; the same one gives no event. `Conflict` when the ticket is closed."""
    if subject == ticket.subject:
        return []
    _refuse_closed(ticket)
    return [TicketRenamed(subject=subject)]


def reply(ticket: Ticket, body: str, *, now: datetime) -> TicketReplied:
    """A text added to the ticket. `Conflict` when the ticket is closed or has as many as it may."""
    _refuse_closed(ticket)
    if len(ticket.replies) >= MAX_REPLIES:
        raise Conflict(f"The ticket already has {MAX_REPLIES} replies.")
    return TicketReplied(id=len(ticket.replies) + 1, body=body, created_at=now)


def resolve(ticket: Ticket) -> TicketResolved:
    """Settles an open ticket; else `Conflict`."""
    _refuse_unless(ticket, "open")
    return TicketResolved()


def reopen(ticket: Ticket) -> TicketReopened:
    """Opens a resolved or closed ticket again; else `Conflict`."""
    _refuse_unless(ticket, "resolved", "closed")
    return TicketReopened()


def close(ticket: Ticket) -> TicketClosed:
    """Puts an open or resolved ticket away; else `Conflict`."""
    _refuse_unless(ticket, "open", "resolved")
    return TicketClosed()


def visible(ticket: Ticket | None, owner_id: int, *, admin: bool) -> Ticket:
    """The ticket, unless it never was or is another owner's (and the caller not `admin`)."""
    if ticket is None or (ticket.owner_id != owner_id and not admin):
        raise NotFound("No such ticket.")
    return ticket


def apply_ticket(ticket: Ticket | None, event: EventData) -> Ticket:
    """The ticket after an event. Never fails on what was once recorded."""
    match event:
        case TicketOpened():
            first = () if event.body is None else (Reply(1, event.body, event.created_at),)
            return Ticket(event.id, event.owner_id, event.subject, "open", event.created_at, first)
    if ticket is None:
        raise AssertionError("a ticket's first event is its opening")
    match event:
        case TicketRenamed():
            return replace(ticket, subject=event.subject)
        case TicketReplied():
            return replace(ticket, replies=(*ticket.replies, Reply(event.id, event.body, event.created_at)))
        case TicketResolved():
            return replace(ticket, status="resolved")
        case TicketReopened():
            return replace(ticket, status="open")
        case TicketClosed():
            return replace(ticket, status="closed")
    return ticket


def _refuse_closed(ticket: Ticket) -> None:
    _refuse_unless(ticket, "open", "resolved")


def _refuse_unless(ticket: Ticket, *allowed: TicketStatus) -> None:
    if ticket.status not in allowed:
        raise Conflict(f"The ticket is {ticket.status}.")
