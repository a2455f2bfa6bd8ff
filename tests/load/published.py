"""Where figures are published: docs/figures.md has all of them, README the table of what was promised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.load.report import PROMISES, table

FIGURES, README = Path("docs/figures.md"), Path("README.md")
_HEAD = """# Figures

Written by `make bench ARGS=--write`; what is measured, and how, is in `tests/load`. Machines differ and are noisy: the ratios,
taken within one round, say more than the absolute figures."""
_PART = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->", re.DOTALL)
_README = re.compile(r"(?<=<!-- figures -->\n\n).*(?=\n\n<!-- /figures -->)", re.DOTALL)
_TABLE = table(PROMISES, ()) + "\n"


def publish(parts: Mapping[str, str], order: Sequence[str]) -> None:
    """Puts these parts into both documents, in the place of their former ones; the others stay as they are."""
    found = {match[1]: match[0] for match in _PART.finditer(FIGURES.read_text())} | dict(parts)
    FIGURES.write_text("\n\n".join([_HEAD, *(found[name] for name in order if name in found)]) + "\n")
    text = README.read_text()
    assert _README.search(text), f"{README} has no place for figures"
    README.write_text(_README.sub(lambda _: promises(FIGURES.read_text()), text))


def promises(figures: str) -> str:
    """README's table: of each part of docs/figures.md the first one."""
    rows: list[str] = []
    for part in _PART.finditer(figures):
        _, found, rest = part[0].partition(_TABLE)
        rows += rest.partition("\n\n")[0].splitlines() if found else []
    return _TABLE + "\n".join(rows)
