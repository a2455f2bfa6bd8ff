"""One example of every event, with every field set: what golden files are made of (`python -m tests.unit.shared.samples`).

A golden file is written once for each version of an event and never again: it stands for what lies in the topics.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from shared.events import CloudEvent, EventData
from shared.events.keys import (
    UNLIMITED,
    Hash,
    Heartbeat,
    KeyCreated,
    KeyDeactivated,
    KeyDeleted,
    KeyReactivated,
    KeyRevoked,
    KeyRotated,
    KeyState,
    KeyUpdated,
    Limits,
    OwnerCreated,
    OwnerResumed,
    OwnerState,
    OwnerSuspended,
)
from shared.events.requests import EdgeStatus, KeyUsage, LogClosed, RequestMetered, UsageMark
from shared.events.schemas import file_name
from shared.events.tickets import (
    TicketClosed,
    TicketOpened,
    TicketRenamed,
    TicketReopened,
    TicketReplied,
    TicketResolved,
)

GOLDEN = Path(__file__).parent / "golden"
MOMENT = datetime(2024, 3, 20, 12, 0, 0, 123456, tzinfo=UTC)
LOG = "0123456789abcdef0123456789abcdef"

DATA: tuple[EventData, ...] = (
    OwnerCreated(id=3, name="Ada", created_at=MOMENT, max_keys=1000),
    OwnerSuspended(),
    OwnerResumed(),
    KeyCreated(
        id=7,
        owner_id=3,
        name="My API Key",
        description=None,
        permissions=("admin", "tickets:read"),
        limits=Limits(minute=100, hour=None, day=10000),
        expires_at=MOMENT,
        addresses=("10.0.0.0/8", "2001:db8::/32"),
        prefix="kl_live_",
        last_four="aB3x",
        created_at=MOMENT,
    ),
    KeyUpdated(name="Schlüssel 🔑", description="for my application"),
    KeyDeactivated(),
    KeyReactivated(),
    KeyRotated(prefix="kl_live_", last_four="9zZ0", old_valid_until=MOMENT),
    KeyRevoked(),
    KeyDeleted(),
    KeyState(
        id=7,
        owner_id=3,
        status="inactive",
        permissions=("tickets:read",),
        limits=UNLIMITED,
        expires_at=None,
        addresses=(),
        hashes=(Hash(hash="ab" * 32, valid_until=MOMENT), Hash(hash="cd" * 32)),
    ),
    OwnerState(id=3, status="suspended"),
    Heartbeat(partition=5, position=12, streams=4, generation=2),
    TicketOpened(id=1, owner_id=3, subject="Ticket Subject", body="It does\nnot work.", created_at=MOMENT),
    TicketRenamed(subject="Another subject"),
    TicketReplied(id=2, body="It does now.", created_at=MOMENT),
    TicketResolved(),
    TicketReopened(),
    TicketClosed(),
    RequestMetered(
        sequence=41,
        previous=38,
        edge="edge-1",
        key_id=7,
        key_version=2,
        owner_id=3,
        endpoint="/api/v1/tickets",
        route="tickets",
        method="GET",
        status_code=200,
        response_time=0.15,
        decision="allowed",
        via="proxy",
        request_id="4bf92f3577b34da6a3ce929d0e0e4736",
        correlation_id=None,
        client_address="192.0.2.1",
    ),
    LogClosed(sequence=42, previous=41, edge="edge-1"),
    KeyUsage(key_id=7, owner_id=3, usage_count=42, last_used=MOMENT),
    UsageMark(log=LOG, partition=5, mark=41, gaps=((3, 7), (9, 10)), next_offset=100, closed=False),
    EdgeStatus(edge="edge-1", status="live", ready=True, applied={0: 12, 5: 9}, freshness=0.4),
)


def cloud_event(data: EventData) -> CloudEvent[EventData]:
    """The event with every attribute of the envelope set."""
    return CloudEvent[EventData](
        id="0a0b0c0d-0000-4000-8000-00000000002a",
        source="keyledger/keys",
        type=data.TYPE,
        time=MOMENT,
        subject="key-7",
        schemaversion=data.SCHEMA_VERSION,
        epoch=1,
        position=12,
        streamversion=2,
        actor="key-1",
        reason="asked for",
        requestid="4bf92f3577b34da6a3ce929d0e0e4736",
        correlationid="order-9",
        causationid="0a0b0c0d-0000-4000-8000-000000000029",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        data=data,
    )


if __name__ == "__main__":
    for sample in DATA:
        if not (path := GOLDEN / file_name(type(sample))).exists():
            path.write_bytes(cloud_event(sample).encode() + b"\n")
