"""A stack's `env` file: what a user's shell, a client or a test needs to talk to the stack. Read by `.` of any POSIX shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from deploy.local.directory import write_durably


def read(path: Path) -> dict[str, str]:
    """The variables in the file; none if there is no file."""
    if not path.exists():
        return {}
    words = shlex.split(path.read_text(), comments=True)
    return dict(word.split("=", 1) for word in words if word != "export")


def write(path: Path, variables: Mapping[str, str]) -> None:
    """Replace the file durably, readable by its owner alone: it holds the first key's secret."""
    lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    write_durably(path, "".join(lines))
