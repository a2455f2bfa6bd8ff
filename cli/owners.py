"""`keyledger owner create` and `key create`: made on the server itself, for the first owner and for lost keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.output import DEFAULT_DIR, explained, say

Dir = Annotated[
    Path | None,
    typer.Option(
        "--dir", help=f"A stack's directory; without it KEYLEDGER_KEYS_DATABASE says where, else {DEFAULT_DIR}."
    ),
]
NoLimits = Annotated[bool, typer.Option("--no-limits", help="A key that is never limited.")]
Admin = Annotated[bool, typer.Option("--admin", help="A key with the permission `admin`.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")]


def create_owner(
    name: Annotated[str, typer.Argument(help="The owner's name.")],
    directory: Dir = None,
    no_limits: NoLimits = False,
    admin: Admin = False,
    as_json: AsJson = False,
) -> None:
    """Create an owner with a first key, and show its secret, once."""
    _create(directory, name, as_json, admin=admin, limited=not no_limits)


def create_key(
    owner: Annotated[int, typer.Option("--owner", min=1, help="The owner's id.")],
    directory: Dir = None,
    no_limits: NoLimits = False,
    admin: Admin = False,
    as_json: AsJson = False,
) -> None:
    """Create a key for an owner, and show its secret, once: the way back in when the last key is lost."""
    _create(directory, owner, as_json, admin=admin, limited=not no_limits)


def _create(directory: Path | None, owner: str | int, as_json: bool, *, admin: bool, limited: bool) -> None:
    # The keys service takes a second to import, which the other commands need not wait for.
    from cli import making  # noqa: PLC0415

    with explained():
        made = making.create(directory, owner, admin=admin, limited=limited)
    if as_json:
        typer.echo(json.dumps(made))
        return
    say(f"owner   {made['owner_id']}\nkey     {made['key_id']}\nsecret  {made['secret']}")
    say("The secret is not kept and can't be shown again.")
