"""HTTP of the tickets service: parse, command, answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, StringConstraints, model_validator

from services.tickets import domain, store
from services.tickets.domain import (
    By,
    CloseTicket,
    Command,
    RenameTicket,
    ReopenTicket,
    ReplyToTicket,
    ResolveTicket,
    Ticket,
)
from shared.api import (
    LOCATION,
    MAY_BE_ABSENT,
    ONE_LINE,
    Body,
    Caller,
    OwnerParam,
    Paged,
    Text,
    Timestamp,
    context,
    example,
    path_id,
    timestamp,
)
from shared.events import NewEvent
from shared.events.tickets import TicketStatus
from shared.eventstore import Meta, handle, reserve_id
from shared.identity import Identity
from shared.postgres import Connection, Pool, transaction

router = APIRouter(prefix="/api/v1/tickets", tags=["Tickets"])


@dataclass(frozen=True)
class Context:
    """What the routes work with, made by the composition root."""

    pool: Pool


Ctx = Annotated[Context, Depends(context)]


TicketId = Annotated[int, path_id("ticket_id", "No such ticket.")]

Subject = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), ONE_LINE]
Words = Annotated[Text, StringConstraints(min_length=1, max_length=10_000)]


_TICKET = {"id": 1, "subject": "Ticket Subject", "status": "open", "created_at": "2024-03-21T15:30:00Z"}
_REPLY = {"id": 1, "body": "It says 403 since this morning.", "created_at": "2024-03-21T15:30:00Z"}


class OpenTicket(Body):
    """A new ticket; `body`, if given, becomes its first reply."""

    model_config = example({"subject": "Ticket Subject", "body": _REPLY["body"]})

    subject: Subject
    body: Words | None = None


class UpdateTicket(Body):
    """What is to change; what is absent stays."""

    model_config = example({"subject": "Another subject"})

    subject: Annotated[Subject | None, MAY_BE_ABSENT] = None

    @model_validator(mode="after")
    def _not_null(self) -> UpdateTicket:
        if "subject" in self.model_fields_set and self.subject is None:
            raise ValueError("subject must not be null")
        return self


class AddReply(Body):
    """A text for a ticket."""

    model_config = example({"body": "It works again."})

    body: Words


class TicketSummary(BaseModel):
    """A ticket as lists and changes show it."""

    model_config = example(_TICKET)

    id: int
    subject: str
    status: TicketStatus
    created_at: Timestamp


class TicketReply(BaseModel):
    """One text of a ticket, numbered from 1 within it."""

    model_config = example(_REPLY)

    id: int
    body: str
    created_at: Timestamp


class TicketDetails(TicketSummary):
    """A ticket with its replies, oldest first."""

    model_config = example({**_TICKET, "replies": [_REPLY]})

    replies: list[TicketReply]


class TicketList(BaseModel):
    """A page of tickets."""

    model_config = example({"tickets": [_TICKET], "total": 1, "page": 1, "size": 10})

    tickets: list[TicketSummary]
    total: int
    page: int
    size: int


@router.post("", status_code=201, responses={201: {"headers": LOCATION}})
async def open_ticket(
    body: OpenTicket, caller: Caller, ctx: Ctx, response: Response, owner: OwnerParam = None
) -> TicketSummary:
    """Opens a ticket."""
    owner_id = caller.owner(owner)
    async with transaction(ctx.pool) as connection:
        ticket_id = await reserve_id(connection, "ticket_ids")
    opened = domain.OpenTicket(ticket_id, owner_id, body.subject, body.body, datetime.now(UTC))
    ticket = await _carry_out(ctx, caller, ticket_id, opened)
    response.headers["Location"] = f"{router.prefix}/{ticket_id}"
    return _out(ticket)


@router.get("")
async def list_tickets(
    caller: Caller,
    ctx: Ctx,
    page: Paged,
    status: Annotated[TicketStatus | None, MAY_BE_ABSENT] = None,
    owner: OwnerParam = None,
) -> TicketList:
    """The caller's tickets by id, of one status if it is given."""
    owner_id = caller.owner(owner)
    async with transaction(ctx.pool) as connection:
        found, total = await store.list_tickets(connection, owner_id, status, page.offset, page.size)
    return TicketList(tickets=[_out(ticket) for ticket in found], total=total, page=page.page, size=page.size)


@router.get("/{ticket_id}")
async def get_ticket(ticket_id: TicketId, caller: Caller, ctx: Ctx) -> TicketDetails:
    """A ticket and all its replies."""
    async with transaction(ctx.pool) as connection:
        found, replies = await store.get_ticket(connection, ticket_id)
    ticket = domain.visible(found, _by(caller))
    return TicketDetails(**_out(ticket).model_dump(), replies=[_reply_out(reply) for reply in replies])


@router.put("/{ticket_id}")
async def update_ticket(ticket_id: TicketId, body: UpdateTicket, caller: Caller, ctx: Ctx) -> TicketSummary:
    """Changes the subject."""
    return _out(await _carry_out(ctx, caller, ticket_id, RenameTicket(_by(caller), body.subject)))


@router.post("/{ticket_id}/replies", status_code=201)
async def add_reply(ticket_id: TicketId, body: AddReply, caller: Caller, ctx: Ctx) -> TicketReply:
    """Adds a reply."""
    now = datetime.now(UTC)
    ticket = await _carry_out(ctx, caller, ticket_id, ReplyToTicket(_by(caller), body.body, now))
    return _reply_out(store.Reply(ticket.replies, body.body, now))


@router.post("/{ticket_id}/resolve")
async def resolve_ticket(ticket_id: TicketId, caller: Caller, ctx: Ctx) -> TicketSummary:
    """Settles an open ticket."""
    return _out(await _carry_out(ctx, caller, ticket_id, ResolveTicket(_by(caller))))


@router.post("/{ticket_id}/reopen")
async def reopen_ticket(ticket_id: TicketId, caller: Caller, ctx: Ctx) -> TicketSummary:
    """Opens a resolved or closed ticket again."""
    return _out(await _carry_out(ctx, caller, ticket_id, ReopenTicket(_by(caller))))


@router.post("/{ticket_id}/close")
async def close_ticket(ticket_id: TicketId, caller: Caller, ctx: Ctx) -> TicketSummary:
    """Puts a ticket away."""
    return _out(await _carry_out(ctx, caller, ticket_id, CloseTicket(_by(caller))))


async def _carry_out(ctx: Context, caller: Identity, ticket_id: int, command: Command) -> Ticket:
    async def decide(_: Connection, ticket: Ticket | None) -> Sequence[NewEvent]:
        return domain.decide(command, ticket)

    return (await handle(ctx.pool, store.TICKETS, f"ticket-{ticket_id}", decide, Meta.of(caller.actor))).state


def _by(caller: Identity) -> By:
    return By(caller.owner_id, caller.admin)


def _out(ticket: Ticket) -> TicketSummary:
    return TicketSummary(
        id=ticket.id, subject=ticket.subject, status=ticket.status, created_at=timestamp(ticket.created_at)
    )


def _reply_out(reply: store.Reply) -> TicketReply:
    return TicketReply(id=reply.id, body=reply.body, created_at=timestamp(reply.created_at))
