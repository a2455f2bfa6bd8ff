"""The only SQL of the stats service."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from services.stats.domain import Calls, Key, Ticket
from shared.postgres import Bigints, Connection

_ADD_CALLS = """
UPDATE key_calls AS c
SET calls = c.calls + a.calls, proxied = c.proxied + a.proxied, succeeded = c.succeeded + a.succeeded,
    response_microseconds = c.response_microseconds + a.microseconds, last_used = greatest(c.last_used, a.last_used)
FROM unnest(%(keys)s, %(calls)s, %(proxied)s, %(succeeded)s, %(microseconds)s, %(last_used)b::timestamptz[])
    AS a (key_id, calls, proxied, succeeded, microseconds, last_used)
WHERE c.key_id = a.key_id
"""
# Those that are not there. One that another consumer begins at the same time is added to.
_BEGIN_CALLS = """
INSERT INTO key_calls AS c (key_id, owner_id, calls, proxied, succeeded, response_microseconds, last_used)
SELECT * FROM unnest(
    %(keys)s, %(owners)s, %(calls)s, %(proxied)s, %(succeeded)s, %(microseconds)s, %(last_used)b::timestamptz[]
) AS a (key_id, owner_id, calls, proxied, succeeded, microseconds, last_used)
WHERE NOT EXISTS (SELECT FROM key_calls AS k WHERE k.key_id = a.key_id)
ON CONFLICT (key_id) DO UPDATE SET calls = c.calls + excluded.calls, proxied = c.proxied + excluded.proxied,
    succeeded = c.succeeded + excluded.succeeded, last_used = greatest(c.last_used, excluded.last_used),
    response_microseconds = c.response_microseconds + excluded.response_microseconds
"""


@dataclass(frozen=True)
class Totals:
    """An owner's figures over all time, deleted keys' calls included."""

    calls: int
    proxied: int
    succeeded: int
    response_microseconds: Decimal


@dataclass(frozen=True)
class UsedKey:
    """A key with its calls."""

    id: int
    name: str
    status: str
    usage_count: int
    last_used: datetime | None


async def load_keys(connection: Connection, ids: Collection[int]) -> dict[int, Key]:
    """The keys that are there, by id."""
    # A year that Python does not have would make the key's every later event unreadable.
    query = (
        "SELECT id, owner_id, name, status, least(expires_at, '9999-12-30 00:00+00') AS expires_at"
        " FROM keys WHERE id = ANY(%s)"
    )
    rows = await connection.execute(query, [list(ids)])
    return {row["id"]: Key(**row) async for row in rows}


async def save_keys(connection: Connection, keys: Collection[Key]) -> None:
    """Puts the keys in place of what was there."""
    await connection.execute(
        "INSERT INTO keys (id, owner_id, name, status, expires_at)"
        " SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::timestamptz[])"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name, status = excluded.status",
        [
            [key.id for key in keys],
            [key.owner_id for key in keys],
            [key.name for key in keys],
            [key.status for key in keys],
            [key.expires_at for key in keys],
        ],
    )


async def load_tickets(connection: Connection, ids: Collection[int]) -> dict[int, Ticket]:
    """The tickets that are there, by id."""
    rows = await connection.execute("SELECT * FROM tickets WHERE id = ANY(%s)", [list(ids)])
    return {row["id"]: Ticket(**row) async for row in rows}


async def save_tickets(connection: Connection, tickets: Collection[Ticket]) -> None:
    """Puts the tickets in place of what was there, and their owners' counts beside them."""
    await _count_tickets(connection, tickets)
    await connection.execute(
        "INSERT INTO tickets (id, owner_id, subject, status, created_at)"
        " SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::timestamptz[])"
        " ON CONFLICT (id) DO UPDATE SET subject = excluded.subject, status = excluded.status",
        [
            [ticket.id for ticket in tickets],
            [ticket.owner_id for ticket in tickets],
            [ticket.subject for ticket in tickets],
            [ticket.status for ticket in tickets],
            [ticket.created_at for ticket in tickets],
        ],
    )


async def _count_tickets(connection: Connection, tickets: Collection[Ticket]) -> None:
    """By what will change. In the order of owners, whom consumers of several partitions share."""
    await connection.execute(
        "INSERT INTO ticket_counts AS c (owner_id, open, settled)"
        " SELECT now.owner_id, sum(now.open - coalesce((had.status = 'open')::int, 0)),"
        " sum(1 - now.open - coalesce((had.status <> 'open')::int, 0))"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::int[]) AS now(id, owner_id, open)"
        " LEFT JOIN tickets AS had ON had.id = now.id GROUP BY now.owner_id ORDER BY now.owner_id"
        " ON CONFLICT (owner_id) DO UPDATE SET open = c.open + excluded.open, settled = c.settled + excluded.settled",
        [
            [ticket.id for ticket in tickets],
            [ticket.owner_id for ticket in tickets],
            [int(ticket.status == "open") for ticket in tickets],
        ],
    )


async def add_calls(connection: Connection, counts: dict[int, Calls]) -> None:
    """Adds to the keys' calls, in the order of their ids."""
    keys = Bigints(sorted(counts))
    added = [counts[key] for key in keys]
    values: dict[str, Any] = {
        "keys": keys,
        "calls": Bigints([each.calls for each in added]),
        "proxied": Bigints([each.proxied for each in added]),
        "succeeded": Bigints([each.succeeded for each in added]),
        "microseconds": Bigints([each.response_microseconds for each in added]),
        "last_used": [each.last_used for each in added],
    }
    updated = await connection.execute(_ADD_CALLS, values)
    if updated.rowcount < len(keys):
        await connection.execute(_BEGIN_CALLS, values | {"owners": Bigints([each.owner_id for each in added])})


async def totals(connection: Connection, owner_id: int) -> Totals:
    """The owner's calls."""
    row = await (
        await connection.execute(
            "SELECT coalesce(sum(calls), 0)::bigint AS calls, coalesce(sum(proxied), 0)::bigint AS proxied,"
            " coalesce(sum(succeeded), 0)::bigint AS succeeded,"
            " coalesce(sum(response_microseconds), 0) AS response_microseconds FROM key_calls WHERE owner_id = %s",
            [owner_id],
        )
    ).fetchone()
    assert row is not None
    return Totals(**row)


async def ticket_counts(connection: Connection, owner_id: int) -> tuple[int, int]:
    """How many of the owner's tickets are open, and how many are resolved or closed."""
    query = "SELECT open, settled FROM ticket_counts WHERE owner_id = %s"
    row = await (await connection.execute(query, [owner_id])).fetchone()
    return (row["open"], row["settled"]) if row else (0, 0)


async def recent_tickets(connection: Connection, owner_id: int, limit: int) -> list[Ticket]:
    """The owner's newest tickets."""
    query = "SELECT * FROM tickets WHERE owner_id = %s ORDER BY created_at DESC, id DESC LIMIT %s"
    return [Ticket(**row) async for row in await connection.execute(query, [owner_id, limit])]


async def active_keys(connection: Connection, owner_id: int, now: datetime) -> int:
    """How many of the owner's keys are active and not expired."""
    query = (
        "SELECT count(*) AS count FROM keys"
        " WHERE owner_id = %s AND status = 'active' AND (expires_at IS NULL OR expires_at > %s)"
    )
    row = await (await connection.execute(query, [owner_id, now])).fetchone()
    assert row is not None
    return int(row["count"])


async def used_keys(connection: Connection, owner_id: int, limit: int) -> list[UsedKey]:
    """The owner's first keys by id, but for deleted ones."""
    query = (
        "SELECT id, name, status, coalesce(calls, 0) AS usage_count, last_used FROM keys"
        " LEFT JOIN key_calls ON key_id = id WHERE keys.owner_id = %s AND status <> 'deleted' ORDER BY id LIMIT %s"
    )
    return [UsedKey(**row) async for row in await connection.execute(query, [owner_id, limit])]
