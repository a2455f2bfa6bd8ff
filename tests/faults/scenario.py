"""A scenario: what is done to the stack, drawn by the run's seed, and the account that it ends with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from tests.e2e.client import Client
from tests.e2e.load import Load, assert_counted_once

SEED = "KEYLEDGER_FAULTS_SEED"


def stretched(seconds: float) -> float:
    """A promised time as it is on this machine now: longer by as much as there is more to do than it has processors."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass
class Scenario:
    """One row of the table that a run ends with. `faults` counts those that were really injected."""

    name: str
    seed: str = field(default_factory=lambda: os.environ[SEED])
    faults: int = 0
    answers: int = 0
    rows: int = 0
    unanswered: int = 0
    started: float = field(default_factory=time.monotonic)

    def random(self, what: str = "") -> Random:
        """What is drawn in this scenario for `what`, whatever else is drawn meanwhile."""
        return Random(f"{self.seed}/{self.name}/{what}")

    def account(
        self, owner: Client, loads: Sequence[Load], *, faults: int, answers: int, deadline: float = 120.0
    ) -> None:
        """Ends the loads and makes their account; AssertionError too when less happened than the scenario needs."""
        for load in loads:
            load.end()
        self.answers = sum(len(load.seen) for load in loads)
        self.unanswered = sum(load.unanswered.total() for load in loads)
        assert self.faults >= faults, f"{self.faults} faults are too few to show anything"
        assert self.answers >= answers, f"{self.answers} answers are too few to show anything"
        for load in loads:
            self.rows += assert_counted_once(owner, load, deadline)

    def row(self) -> dict[str, Any]:
        """What the table tells, but for the result."""
        row = asdict(self)
        return row | {"seconds": round(time.monotonic() - row.pop("started"))}
