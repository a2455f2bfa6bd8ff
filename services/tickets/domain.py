"""The life of tickets: what a command leads to, and what an event makes of the state. Pure.

A ticket is open, resolved (settled, still talked about) or closed (put away: nothing but reopening changes it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shared.errors import Conflict, NotFound
from shared.events import EventData, NewEvent
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
class Ticket:
    """A ticket after its events. Of its replies a command needs only the number: the last one's id."""

    id: int
    owner_id: int
    subject: str
    status: TicketStatus
    created_at: datetime
    replies: int = 0


@dataclass(frozen=True)
class By:
    """Who asks: an owner, or with `admin` one that may touch every owner's tickets."""

    owner_id: int
    admin: bool = False


@dataclass(frozen=True)
class OpenTicket:
    """A new ticket of `owner_id`; `body`, if there is one, is its first reply."""

    id: int
    owner_id: int
    subject: str
    body: str | None
    now: datetime


@dataclass(frozen=True)
class RenameTicket:
    """The ticket under another subject; None, and the same one, change nothing."""

    by: By
    subject: str | None


@dataclass(frozen=True)
class ReplyToTicket:
    """A text added to the ticket."""

    by: By
    body: str
    now: datetime


@dataclass(frozen=True)
class ResolveTicket:
    """Settles an open ticket."""

    by: By


@dataclass(frozen=True)
class ReopenTicket:
    """Opens a resolved or closed ticket again."""

    by: By


@dataclass(frozen=True)
class CloseTicket:
    """Puts an open or resolved ticket away."""

    by: By


_OnTicket = RenameTicket | ReplyToTicket | ResolveTicket | ReopenTicket | CloseTicket
Command = OpenTicket | _OnTicket


def decide(command: Command, ticket: Ticket | None) -> list[NewEvent]:
    """The events that the command leads to: none when there is nothing to change, or it was carried out before.

    `Conflict` when the state does not allow it; `NotFound` when there is no such ticket for who asks.
    """
    if isinstance(command, OpenTicket):
        return [] if ticket else [NewEvent(_opened(command))]
    return [NewEvent(event) for event in _changed(command, visible(ticket, command.by))]


def _opened(command: OpenTicket) -> TicketOpened:
    return TicketOpened(
        id=command.id,
        owner_id=command.owner_id,
        subject=command.subject,
        body=command.body,
        created_at=command.now,
    )


def _changed(command: _OnTicket, ticket: Ticket) -> list[EventData]:
    match command:
        case RenameTicket(_, subject):
            if subject is None or subject == ticket.subject:
                return []
            _refuse_unless(ticket, "open", "resolved")
            return [TicketRenamed(subject=subject)]
        case ReplyToTicket(_, body, now):
            _refuse_unless(ticket, "open", "resolved")
            if ticket.replies >= MAX_REPLIES:
                raise Conflict(f"The ticket already has {MAX_REPLIES} replies.")
            return [TicketReplied(id=ticket.replies + 1, body=body, created_at=now)]
        case ResolveTicket():
            _refuse_unless(ticket, "open")
            return [TicketResolved()]
        case ReopenTicket():
            _refuse_unless(ticket, "resolved", "closed")
            return [TicketReopened()]
        case CloseTicket():
            _refuse_unless(ticket, "open", "resolved")
            return [TicketClosed()]


def visible(ticket: Ticket | None, by: By) -> Ticket:
    """The ticket, unless it never was or is another owner's (and `by` not an admin)."""
    if ticket is None or (ticket.owner_id != by.owner_id and not by.admin):
        raise NotFound("No such ticket.")
    return ticket


def apply(ticket: Ticket | None, event: EventData, _private: dict[str, Any] | None) -> Ticket:
    """The ticket after an event. Never fails on what was once recorded."""
    match event:
        case TicketOpened():
            replies = 0 if event.body is None else 1
            return Ticket(event.id, event.owner_id, event.subject, "open", event.created_at, replies)
    if ticket is None:
        raise AssertionError("a ticket's first event is its opening")
    match event:
        case TicketRenamed():
            return replace(ticket, subject=event.subject)
        case TicketReplied():
            return replace(ticket, replies=event.id)
        case TicketResolved():
            return replace(ticket, status="resolved")
        case TicketReopened():
            return replace(ticket, status="open")
        case TicketClosed():
            return replace(ticket, status="closed")
    return ticket


def _refuse_unless(ticket: Ticket, *allowed: TicketStatus) -> None:
    if ticket.status not in allowed:
        raise Conflict(f"The ticket is {ticket.status}.")
