"""What `make bench` prints: sections of Markdown for each figure, and what makes a run worthless."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.load import machine

PROMISES = ("what", "promised", "measured")


@dataclass
class Section:
    """A table. `promises` are rows of what was promised and how it came out, for README too; `problems` is why it does not
    count; `notes` are sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    promises: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The section as it is printed."""
        lines = [f"### {self.title}", *([table(self.columns, self.rows)] if self.rows else []), *self.notes]
        return "\n\n".join([*lines, *(f"**Invalid: {problem}**" for problem in self.problems)])


def part(name: str, sections: Sequence[Section], command: str) -> str:
    """A figure: how it was made, what was promised, and its sections."""
    promises = [promise for section in sections for promise in section.promises]
    about = f"Made by `{command}` on {machine.describe()}."
    head = [f"<!-- {name} -->", f"## {name.capitalize()}", about, table(PROMISES, promises)]
    return "\n\n".join([*head, *(section.markdown() for section in sections), f"<!-- /{name} -->"])


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    heads = list(columns)
    return "\n".join(_row(each) for each in (heads, ["---"] * len(heads), *rows))


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, with minimum and maximum."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"**{middle:,.{digits}f}** ({low:,.{digits}f} to {high:,.{digits}f})"


def missed(met: bool) -> str:
    """What stands behind a figure that is not what was promised."""
    return "" if met else ": **missed**"


def milliseconds(seconds: Iterable[float]) -> tuple[str, str, str]:
    """p50, p99 and worst of durations."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    p50, p99, worst = (f"{ordered[round(share * last)] * 1000:.1f} ms" for share in (0.5, 0.99, 1))
    return p50, p99, worst


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
