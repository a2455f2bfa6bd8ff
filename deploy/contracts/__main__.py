"""Writes the documents that are made from the code: `python -m deploy.contracts`. With `--check` it only says which differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.contracts import asyncapi, configuration, openapi

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "schemas"
_DOCUMENTS: dict[str, Callable[[], dict[str, Any] | str]] = {
    f"{DIRECTORY.name}/openapi.json": openapi.document,
    f"{DIRECTORY.name}/asyncapi.json": asyncapi.document,
    "docs/configuration.md": configuration.document,
}


def main(root: Path, *, check: bool) -> list[str]:
    """Writes the documents below `root`, or with `check` returns the names of those that are not as the code makes them."""
    stale = []
    for name, document in _DOCUMENTS.items():
        path, made = root / name, document()
        text = made if isinstance(made, str) else json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    return stale


if __name__ == "__main__":
    if differing := main(ROOT, check="--check" in sys.argv[1:]):
        sys.exit(f"not as the code makes them: {', '.join(differing)}. Run: .venv/bin/python -m deploy.contracts")
