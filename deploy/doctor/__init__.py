"""What is missing or wrong on this machine, or with the stack of a directory, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is: fine; worth knowing, and it runs; or it does not run, or not as promised."""

    ok = "ok"
    warning = "warning"
    error = "error"


@dataclass(frozen=True)
class Finding:
    """What one check has found: what it means in `what`, what to do next, if anything, in `todo`."""

    check: str
    level: Level
    what: str
    todo: str = ""


def ok(check: str, what: str) -> Finding:
    """It is as it should be."""
    return Finding(check, Level.ok, what)


def warning(check: str, what: str, todo: str = "") -> Finding:
    """It runs all the same."""
    return Finding(check, Level.warning, what, todo)


def error(check: str, what: str, todo: str = "") -> Finding:
    """It does not run, or not as promised."""
    return Finding(check, Level.error, what, todo)
