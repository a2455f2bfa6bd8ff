"""The reference of all environment variables, made from the settings classes: `docs/configuration.md`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.edge.settings import EdgeSettings
from services.keys.settings import Settings as Keys
from services.stats.settings import Settings as Stats
from services.tickets.settings import Settings as Tickets
from services.usage.settings import Settings as Usage
from shared.settings import Base, ServiceSettings, variables

_INTRODUCTION = """\
# Configuration

Every setting is an environment variable or, for secrets in containers, a file in `/run/secrets` with the variable's name;
the environment wins. There is no configuration file but the [routes](routes.md). All are checked when a process starts: a
wrong or missing one ends it at once with status 78, and every error is on standard error, with the variable's name. A
change needs a restart of the process.

`keyledger up` sets all of these for the stack on one machine and leaves the others at their defaults; what is in its own
environment, such as `KEYLEDGER_EDGE_MODE`, reaches the processes too.

Those that `docker compose` reads itself are in [.env.example](../.env.example).

This file is made from the code: `.venv/bin/python -m deploy.contracts` writes it.
"""

_SERVICES: dict[str, tuple[type[ServiceSettings], str]] = {
    "keys": (Keys, "`python -m services.keys api`, `worker`, `migrate`"),
    "tickets": (Tickets, "`python -m services.tickets api`, `worker`, `migrate`"),
    "usage": (Usage, "`python -m services.usage api`, `worker`, `migrate`"),
    "stats": (Stats, "`python -m services.stats api`, `worker`, `migrate`"),
}
_OF_THE_PARENT = {"session", "socket", "parent"}
"""What the edge's parent tells its children: nobody else sets it."""

_SPECIAL, _ESCAPED = re.compile("([|<])"), r"\\\1"
_BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def document() -> str:
    """The whole reference, in Markdown."""
    services = ", ".join(f"`services.{name}`" for name in (*_SERVICES, "edge"))
    common = set(variables(Base))
    shared = {name: field for name, field in variables(ServiceSettings).items() if _everywhere(name)}
    parts = [
        _INTRODUCTION,
        _section("All processes", f"Read by every process of {services}.", variables(Base)),
        _section(
            "Services with a database",
            "Read by every process of keys, tickets, usage and stats.",
            {name: field for name, field in shared.items() if name not in common},
        ),
        *(_section(name, f"Read by {by}.", _own(settings)) for name, (settings, by) in _SERVICES.items()),
        _section("edge", "Read by `python -m services.edge` and the processes that it starts.", _own(EdgeSettings)),
    ]
    return "\n".join(parts)


def _everywhere(name: str) -> bool:
    """Whether all services have a variable of this very name."""
    return all(name in variables(settings) for settings, _ in _SERVICES.values())


def _own(settings: type[Base]) -> dict[str, FieldInfo]:
    internal = {name for name in variables(settings) if name.rpartition("_")[2].lower() in _OF_THE_PARENT}
    return {
        name: field
        for name, field in variables(settings).items()
        if not _everywhere(name) and name not in variables(Base) and name not in internal
    }


def _section(title: str, by: str, fields: dict[str, FieldInfo]) -> str:
    rows = (
        _row(f"`{name}`", _values(field), _default(field), field.description or "") for name, field in fields.items()
    )
    head = (_row("variable", "value", "default", "meaning"), _row("---", "---", "---", "---"))
    return "\n".join((f"## {title}\n", by + "\n", *head, *rows, ""))


def _row(*cells: str) -> str:
    return f"| {' | '.join(_SPECIAL.sub(_ESCAPED, cell) for cell in cells)} |"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    if field.default is None or field.default == "":
        return "none"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _values(field: FieldInfo) -> str:
    choices = [each for each in get_args(field.annotation) if isinstance(each, str)]
    if choices:
        return " or ".join(f"`{each}`" for each in choices)
    limits = " and ".join(_bounds(field.metadata))
    pattern = next((each.pattern for each in field.metadata if getattr(each, "pattern", None)), "")
    return " ".join(part for part in (_kind(field.annotation), limits, f"`{pattern}`" if pattern else "") if part)


def _bounds(metadata: Sequence[Any]) -> Iterable[str]:
    for each in metadata:
        if type(each) in _BOUNDS:
            attribute, sign = _BOUNDS[type(each)]
            yield f"{sign} {getattr(each, attribute)}"


def _kind(annotation: Any) -> str:
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "`true` or `false`", "Path": "path"}
    kinds = [names[name] for name in names if name in str(annotation)] if get_args(annotation) else []
    return kinds[0] if kinds else names.get(getattr(annotation, "__name__", ""), "text")
