"""HTTP of the stats service (API documentation, Usage Statistics)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from services.stats import store
from services.stats.domain import Ticket, avg_response_time, success_rate
from shared.api import Caller, OwnerParam, Timestamp, context, example, timestamp
from shared.events.tickets import TicketStatus
from shared.postgres import Pool, transaction
from shared.turns import Turns

router = APIRouter(prefix="/api/v1/dashboard", tags=["Dashboard"])
_RECENT_TICKETS = 5
_KEYS = 100


@dataclass(frozen=True)
class Context:
    """What the routes work with, made by the composition root."""

    pool: Pool
    turns: Turns


Ctx = Annotated[Context, Depends(context)]


class ApiUsage(BaseModel):
    """How the proxied calls went: per cent below status 400, and seconds until the answer's head."""

    success_rate: float
    avg_response_time: float


class RecentTicket(BaseModel):
    """A ticket as the dashboard shows it."""

    id: int
    subject: str
    status: TicketStatus
    created_at: Timestamp


class UsedKey(BaseModel):
    """A key as the dashboard shows it."""

    id: int
    name: str
    is_active: bool
    usage_count: int
    last_used: Timestamp | None


class DashboardStats(BaseModel):
    """The dashboard's figures."""

    model_config = example(
        {
            "open_tickets": 5,
            "resolved_tickets": 10,
            "active_api_keys": 2,
            "total_api_calls": 100,
            "api_usage": {"success_rate": 95.5, "avg_response_time": 0.15},
            "recent_tickets": [
                {"id": 1, "subject": "Ticket Subject", "status": "open", "created_at": "2024-03-21T15:30:00Z"}
            ],
            "api_keys": [
                {
                    "id": 1,
                    "name": "My API Key",
                    "is_active": True,
                    "usage_count": 42,
                    "last_used": "2024-03-21T15:30:00Z",
                }
            ],
        }
    )

    open_tickets: int
    resolved_tickets: int
    active_api_keys: int
    total_api_calls: int
    api_usage: ApiUsage
    recent_tickets: list[RecentTicket]
    api_keys: list[UsedKey]


@router.get("/stats")
async def get_dashboard_stats(caller: Caller, ctx: Ctx, owner: OwnerParam = None) -> DashboardStats:
    """The caller's figures over all time, or for `admin` another owner's."""
    owner_id, now = caller.owner(owner), datetime.now(UTC)
    async with ctx.turns.of(caller.owner_id), transaction(ctx.pool) as connection:
        calls = await store.totals(connection, owner_id)
        open_tickets, resolved_tickets = await store.ticket_counts(connection, owner_id)
        tickets = await store.recent_tickets(connection, owner_id, _RECENT_TICKETS)
        active = await store.active_keys(connection, owner_id, now)
        keys = await store.used_keys(connection, owner_id, _KEYS)
    return DashboardStats(
        open_tickets=open_tickets,
        resolved_tickets=resolved_tickets,
        active_api_keys=active,
        total_api_calls=calls.calls,
        api_usage=ApiUsage(
            success_rate=success_rate(calls.succeeded, calls.proxied),
            avg_response_time=avg_response_time(calls.response_microseconds, calls.proxied),
        ),
        recent_tickets=[_ticket(ticket) for ticket in tickets],
        api_keys=[_key(key) for key in keys],
    )


def _ticket(ticket: Ticket) -> RecentTicket:
    return RecentTicket(
        id=ticket.id, subject=ticket.subject, status=ticket.status, created_at=timestamp(ticket.created_at)
    )


def _key(key: store.UsedKey) -> UsedKey:
    return UsedKey(
        id=key.id,
        name=key.name,
        is_active=key.status == "active",
        usage_count=key.usage_count,
        last_used=timestamp(key.last_used) if key.last_used else None,
    )
