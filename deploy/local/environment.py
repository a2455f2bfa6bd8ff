"""`<dir>/env`: what a user's shell, a client or a test needs to talk to the stack. Read by `.` of any POSIX shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from deploy.local.directory import Directory, write_durably


def read(directory: Directory) -> dict[str, str]:
    """The variables in the file; none if there is no file."""
    if not directory.env.exists():
        return {}
    words = shlex.split(directory.env.read_text(), comments=True)
    return dict(word.split("=", 1) for word in words if word != "export")


def write(directory: Directory, variables: Mapping[str, str]) -> None:
    """Replace the file durably, readable by its owner alone: it holds the first key's secret."""
    lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    write_durably(directory.env, "".join(lines))
