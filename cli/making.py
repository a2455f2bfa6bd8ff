"""Makes owners and keys in the keys service's database, where the environment or a stack's directory says it is."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

from cli.output import DEFAULT_DIR
from deploy.local import environment
from deploy.local.directory import Directory
from deploy.local.errors import StackError
from services.keys import bootstrap as keys
from services.keys.settings import Settings
from shared.errors import Problem, Unavailable
from shared.ids import Secret, new_secret
from shared.settings import is_given, load

_DATABASE = "KEYLEDGER_KEYS_DATABASE"
_KAFKA = "KEYLEDGER_KAFKA"


def create(directory: Path | None, owner: str | int, *, admin: bool, limited: bool) -> dict[str, int | str]:
    """A key of an owner that has this id, or, given a name, of a new one: `{"owner_id", "key_id", "secret"}`.

    Raises StackError if it can't be, with what to do.
    """
    _use_database(directory)
    settings = load(Settings)
    secret = new_secret(settings.environment)
    try:
        owner_id, key_id = asyncio.run(_make(settings, owner, secret, admin=admin, limited=limited))
    except Unavailable as problem:
        raise StackError("The keys database can't be reached. Is the stack running?") from problem
    except Problem as problem:
        raise StackError(f"{problem.title}: {problem.detail}" if problem.detail else problem.title) from problem
    return {"owner_id": owner_id, "key_id": key_id, "secret": secret.text}


async def _make(settings: Settings, owner: str | int, secret: Secret, *, admin: bool, limited: bool) -> tuple[int, int]:
    command_id = uuid.uuid4()
    if isinstance(owner, str):
        return await keys.create_owner(
            settings, name=owner, secret=secret, command_id=command_id, admin=admin, limited=limited
        )
    key_id = await keys.create_key(
        settings,
        owner_id=owner,
        name="made on the server",
        secret=secret,
        command_id=command_id,
        admin=admin,
        limited=limited,
    )
    return owner, key_id


def _use_database(directory: Path | None) -> None:
    """A directory that was named wins over the settings, and the settings over the default directory."""
    if directory is None and is_given(_DATABASE):
        variables: dict[str, str] = {}
    else:
        variables = environment.read(Directory(directory or DEFAULT_DIR).env)
        if _DATABASE not in variables:
            raise StackError(f"There is no stack in {directory or DEFAULT_DIR}. Name its --dir, or set {_DATABASE}.")
        os.environ[_DATABASE] = variables[_DATABASE]
    # A service's settings want it; nothing is said to Kafka here, the relay tells of what was made.
    os.environ[_KAFKA] = variables.get(_KAFKA, "127.0.0.1:9092")
