"""What all requests of a serving process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.edge.identity import Identities
from services.edge.serving.gate import Gate
from services.edge.serving.ledger import Ledger
from services.edge.serving.metrics import Metrics
from services.edge.settings import EdgeSettings
from services.edge.upstream.pool import Pool


@dataclass(frozen=True)
class Edge:
    """A serving process's parts. `pool` has the connections to an origin."""

    settings: EdgeSettings
    gate: Gate
    ledger: Ledger
    identities: Identities
    metrics: Metrics
    pool: Callable[[str], Pool]
