"""The first key, made by a job that may die at any point and is then run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from deploy.local import environment
from deploy.local.directory import Directory
from deploy.local.state import load
from shared.ids import new_secret


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    place = Directory(tmp_path / "stack")
    place.create()
    load(place)
    return place


@pytest.fixture
def keys(database: str) -> str:
    """A migrated database of the keys service."""
    run("services.keys", "migrate", database=database)
    return database


def run(*module: str, database: str) -> None:
    variables = os.environ | {"KEYLEDGER_KEYS_DATABASE": database, "KEYLEDGER_KAFKA": "127.0.0.1:1"}
    subprocess.run((sys.executable, "-m", *module), env=variables, check=True, timeout=60)


def make_first_key(directory: Directory, database: str) -> None:
    run("deploy.local.first_key", str(directory.root), database=database)


def hashes(database: str) -> list[str]:
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT private->>'hash' FROM events WHERE type = 'key.created' ORDER BY position")
        return [row[0] for row in rows]


def owners(database: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM events WHERE type = 'owner.created'").fetchone()
        assert row is not None
        return int(row[0])


def test_a_retry_changes_nothing(directory: Directory, keys: str) -> None:
    secret = new_secret("live")
    environment.write(directory.env, {"KEYLEDGER_API_KEY": secret.text})
    before = directory.state.read_text()
    make_first_key(directory, keys)
    remembered = load(directory)
    assert remembered.owner_id is not None and remembered.first_key == secret.hash.hex()
    # As if it had died after the creation, before it could remember it.
    directory.state.write_text(before)
    make_first_key(directory, keys)
    assert load(directory) == remembered
    assert hashes(keys) == [secret.hash.hex()]


def test_a_lost_secret_gets_its_owner_another_key(directory: Directory, keys: str) -> None:
    first, second = new_secret("live"), new_secret("live")
    for secret in (first, second):
        environment.write(directory.env, {"KEYLEDGER_API_KEY": secret.text})
        make_first_key(directory, keys)
    assert hashes(keys) == [first.hash.hex(), second.hash.hex()]
    assert owners(keys) == 1
