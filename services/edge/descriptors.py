"""Files that a process may have open. Each connection is one, and the request log, the replica and the internal page must
have theirs whatever clients do: so connections get what is left, and who comes beyond that is turned away at once.
"""

from __future__ import annotations

import contextlib
import resource
from typing import NamedTuple

KEPT = 64
"""For what is no connection of a client or to an upstream: it counts a dozen, and twice that while a log begins anew."""

BACKLOG = 1024
"""Connections that wait to be accepted, all of which one turn of the event loop may accept."""


class Shares(NamedTuple):
    """How many descriptors there are for what: `clients` are served, `backlog` more may come in one turn, and as many be
    told that there are too many; `upstream` go to each upstream."""

    clients: int
    upstream: int
    backlog: int


def raise_limit() -> int:
    """Takes the files that the system would give (the hard limit), not those a shell starts with; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Refused where the system's own bound was lowered below the hard limit: then the soft one has to do.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def shares(limit: int, *, clients: int, upstream: int, upstreams: int) -> Shares:
    """What of `limit` files there is for the connections that are set: as many, or fewer.

    Upstreams, who are few, get up to a quarter; at least one connection is left for each use.
    """
    rest = max(limit - KEPT, 0)
    backlog = max(1, min(BACKLOG, rest // 8))
    upstream = max(1, min(upstream, rest // 4 // max(upstreams, 1)))
    return Shares(max(1, min(clients, rest - 2 * backlog - upstreams * upstream)), upstream, backlog)
