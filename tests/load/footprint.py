"""What the whole stack holds in memory."""

from __future__ import annotations

from tests.load import machine
from tests.load.machine import Memory
from tests.load.report import Section
from tests.load.stack import Bench

_PROMISED = 1.5e9


def idle(bench: Bench) -> Memory:
    """What the stack holds while it has nothing to do."""
    bench.settle()
    return machine.memory(bench.pids())


def section(moments: dict[str, Memory], processes: int) -> Section:
    """The figures at the moments named."""
    made = Section("Memory of the whole stack", ("when", "PSS", "RSS"))
    made.rows += [
        (when, f"**{held.pss / 1e6:,.0f} MB**", f"{held.rss / 1e6:,.0f} MB") for when, held in moments.items()
    ]
    held = ", ".join(f"**{each.pss / 1e9:.2f} GB** {when}" for when, each in moments.items())
    made.promises.append(
        ("memory of the whole stack, Kafka and PostgreSQL included (PSS)", f"{_PROMISED / 1e9:g} GB", held)
    )
    made.notes.append(
        f"All {processes} processes, PostgreSQL's and Kafka's included. PSS counts a page that several processes share"
        " once in all, RSS once in each."
    )
    if any(held.pss > _PROMISED for held in moments.values()):
        made.problems.append(f"more than the promised {_PROMISED / 1e9} GB")
    return made
