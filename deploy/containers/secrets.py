"""The secrets of a stack in containers, each below the name of the one that gets it: what is missing is made, what is
there stays, whoever put it there.

`python -m deploy.containers.secrets DIR`, where DIR has `postgres` (a role's password in a file of its name), `edge` (the
key that signs identities), and for each service its name (its DSN, and the public half of the edge's key).
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from deploy.local import identity
from deploy.local.directory import write_durably
from deploy.local.errors import StackError
from deploy.local.state import SERVICES

_HOST = "postgres"
_READABLE = 0o444
"""PostgreSQL runs as a user of its own, and nobody else gets its directory."""


def make(root: Path) -> None:
    """Make what is missing. Raises StackError if something that is there can't be used."""
    for service in SERVICES:
        dsn = root / service / f"KEYLEDGER_{service.upper()}_DATABASE"
        if not dsn.exists():
            password = _password(root / "postgres" / service)
            write_durably(dsn, f"postgresql://{service}:{password}@{_HOST}:5432/{service}\n")
    identity.ensure(root / "edge" / "identity.pem", *(root / service / "identity-public.pem" for service in SERVICES))


def _password(path: Path) -> str:
    if not path.exists():
        write_durably(path, secrets.token_urlsafe(24) + "\n", _READABLE)
    return path.read_text().strip()


def main() -> None:
    """Entry point. Exit code 1, with the reason on stderr, if they can't be made."""
    try:
        make(Path(sys.argv[1]))
    except (OSError, StackError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
