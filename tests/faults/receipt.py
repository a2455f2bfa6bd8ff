"""What a command's `Keyledger-Propagation` says."""

from __future__ import annotations

from typing import NamedTuple

import httpx2


class Receipt(NamedTuple):
    """Live edges, those that confirmed, and those that are named as silent or stopped; None for unknown."""

    edges: int | None
    confirmed: int
    silent: frozenset[str]


def receipt(answer: httpx2.Response) -> Receipt:
    """The receipt of a command that was carried out."""
    assert answer.is_success, answer.text
    header = answer.headers["keyledger-propagation"]
    if header == "edges=unknown":
        return Receipt(None, 0, frozenset())
    found = dict(part.split("=", 1) for part in header.split("; "))
    return Receipt(int(found["edges"]), int(found["confirmed"]), frozenset(found.get("silent", "").strip('"').split()))
