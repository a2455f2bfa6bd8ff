"""The first key of a stack: its secret is in `<dir>/env` before anything is created, so no crash can lose it.

`python -m deploy.local.first_key DIR` makes owner and key by the secret's hash; run again, it changes nothing.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

from deploy.local import environment
from deploy.local.directory import Directory
from deploy.local.state import load, save
from services.keys.bootstrap import create_key, create_owner
from services.keys.settings import Settings
from shared.ids import Secret
from shared.settings import load as load_settings

VARIABLE = "KEYLEDGER_API_KEY"

_NAME = "admin"
_COMMANDS = uuid.UUID("5f0b3c1e-7c1d-4f0e-9a58-2f6c1f0f5a10")
"""Namespace of the command ids: each follows from the secret's hash, so a retry has the one of the first try."""


async def create(settings: Settings, secret: Secret, owner_id: int | None = None) -> int:
    """Make an owner with this key, or another key for the owner that there is: its last secret was lost. The owner's id."""
    command_id = uuid.uuid5(_COMMANDS, secret.hash.hex())
    if owner_id is not None:
        await create_key(settings, owner_id=owner_id, name=_NAME, secret=secret, command_id=command_id, admin=True)
        return owner_id
    made, _ = await create_owner(settings, name=_NAME, secret=secret, command_id=command_id, admin=True, limited=True)
    return made


def main() -> None:
    """Create what is missing, and remember it."""
    directory = Directory(Path(sys.argv[1]))
    secret = Secret(environment.read(directory.env)[VARIABLE])
    state = load(directory)
    state.owner_id = asyncio.run(create(load_settings(Settings), secret, state.owner_id))
    state.first_key = secret.hash.hex()
    save(directory, state)


if __name__ == "__main__":
    main()
