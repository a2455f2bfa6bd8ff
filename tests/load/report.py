"""What `make bench` prints: a section of Markdown for each figure, and what makes a run worthless."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.load import machine

_HEAD = """# Figures

Written by `make bench`; what is measured, and how, is in `tests/load`. Machines differ and are noisy: the ratios, taken
within one round, say more than the absolute figures.
"""


@dataclass
class Section:
    """One figure. `problems` is why it does not count; `notes` are sentences below the table."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The section as it is printed."""
        lines = [f"## {self.title}", "", _row(self.columns), _row("---" for _ in self.columns), *map(_row, self.rows)]
        if self.notes:
            lines += ["", *self.notes]
        lines += [f"\n**Invalid: {problem}**" for problem in self.problems]
        return "\n".join(lines) + "\n"


def document(sections: Iterable[Section], command: str) -> str:
    """The whole report."""
    rows = [*machine.describe(), ("command", f"`{command}`")]
    about = "\n".join(["| machine | |", "| --- | --- |", *map(_row, rows)]) + "\n"
    return "\n".join([_HEAD, about, *(section.markdown() for section in sections)])


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, with minimum and maximum."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"**{middle:,.{digits}f}** ({low:,.{digits}f} to {high:,.{digits}f})"


def milliseconds(seconds: Iterable[float]) -> tuple[str, str, str]:
    """p50, p99 and worst of durations."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return tuple(f"{ordered[round(share * last)] * 1000:.1f} ms" for share in (0.5, 0.99, 1))  # type: ignore[return-value]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
