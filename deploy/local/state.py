"""What a stack remembers between its runs: passwords, the Kafka cluster's id and the block of ports (`state.json`, mode 0600)."""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from dataclasses import asdict, dataclass

from deploy.local.directory import Directory, write_durably
from deploy.local.errors import StackError

SERVICES = ("keys", "tickets", "usage", "stats")
"""The services with a database: database and role have the service's name."""


@dataclass
class State:
    """The content of state.json: `passwords` by PostgreSQL role, `block` the first of its ports (0: none chosen yet),
    `migrations` the fingerprint of those that its databases have, `owner_id` and `first_key` (the hash of its secret)
    what was made at the first start (None and empty: nothing yet)."""

    cluster_id: str
    passwords: dict[str, str]
    block: int = 0
    owner_id: int | None = None
    first_key: str = ""
    migrations: str = ""


def load(directory: Directory) -> State:
    """The state of this directory, made anew if it has none. Raises StackError if data is there but the state is lost."""
    if not directory.state.exists():
        return _fresh(directory)
    try:
        return State(**json.loads(directory.state.read_text()))
    except (ValueError, TypeError) as error:
        raise StackError(f"{directory.state} is damaged ({error}). {_way_out(directory)}") from error


def save(directory: Directory, state: State) -> None:
    """Write the state durably, readable by its owner alone."""
    write_durably(directory.state, json.dumps(asdict(state), indent=2) + "\n")


def _fresh(directory: Directory) -> State:
    if directory.postgres.exists():
        raise StackError(f"{directory.state} is missing, but data is there. {_way_out(directory)}")
    state = State(
        cluster_id=_cluster_id(), passwords={name: secrets.token_urlsafe(24) for name in ("postgres", *SERVICES)}
    )
    save(directory, state)
    return state


def _cluster_id() -> str:
    """A Kafka cluster id: a random UUID in 22 characters of base64url, which never begins with a dash (it's an argument)."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def _way_out(directory: Directory) -> str:
    return f"Restore it, or delete this stack and its data with `keyledger down --purge --dir {directory.root}`."
