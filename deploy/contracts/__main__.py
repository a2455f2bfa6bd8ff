"""Writes the documents into `schemas/`: `python -m deploy.contracts`. With `--check` it only says which differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.contracts import asyncapi, openapi

DIRECTORY = Path(__file__).parents[2] / "schemas"
_DOCUMENTS = {"openapi.json": openapi.document, "asyncapi.json": asyncapi.document}


def main(directory: Path, *, check: bool) -> list[str]:
    """Writes the documents, or with `check` returns the names of those that are not as the code makes them."""
    stale = []
    for name, document in _DOCUMENTS.items():
        path, text = directory / name, json.dumps(document(), indent=2, ensure_ascii=False) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    return stale


if __name__ == "__main__":
    if differing := main(DIRECTORY, check="--check" in sys.argv[1:]):
        sys.exit(f"not as the code makes them: {', '.join(differing)}. Run: .venv/bin/python -m deploy.contracts")
