"""Events of the tickets service, on `ticket-events`."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from shared.events import EventData

TicketStatus = Literal["open", "resolved", "closed"]


class TicketOpened(EventData):
    """An owner asks for help; the first text, if there is one, is the reply numbered 1."""

    TYPE: ClassVar[str] = "ticket.opened"
    id: int
    owner_id: int
    subject: str
    body: str | None
    created_at: datetime


class TicketRenamed(EventData):
    """The ticket has another subject."""

    TYPE: ClassVar[str] = "ticket.renamed"
    subject: str


class TicketReplied(EventData):
    """A text was added to the ticket."""

    TYPE: ClassVar[str] = "ticket.replied"
    id: int
    body: str
    created_at: datetime


class TicketResolved(EventData):
    """The ticket's matter is settled; it may be reopened."""

    TYPE: ClassVar[str] = "ticket.resolved"


class TicketReopened(EventData):
    """A resolved or closed ticket is open again."""

    TYPE: ClassVar[str] = "ticket.reopened"


class TicketClosed(EventData):
    """The ticket is put away."""

    TYPE: ClassVar[str] = "ticket.closed"


EVENTS: tuple[type[EventData], ...] = (
    TicketOpened,
    TicketRenamed,
    TicketReplied,
    TicketResolved,
    TicketReopened,
    TicketClosed,
)
