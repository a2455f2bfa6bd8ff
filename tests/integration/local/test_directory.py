"""What a stack keeps in its directory: its ports, what it remembers, and what it tells the user's shell."""

from __future__ import annotations

import socket
import stat
import subprocess
from pathlib import Path

import pytest

from deploy.local import environment, identity
from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.ports import is_free, reserved
from deploy.local.state import load, save
from deploy.local.supervisor import read_status, write_status
from tests.integration.local.test_supervisor import keyledger

NAMES = ("postgres", "kafka")


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    place = Directory(tmp_path / "stack")
    place.create()
    return place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_ports_are_the_same_again() -> None:
    with reserved(NAMES, 0) as first:
        pass
    with reserved(NAMES, first.block) as second:
        assert second == first


def test_stacks_side_by_side_get_different_ports() -> None:
    with reserved(NAMES, 0) as first, reserved(NAMES, first.block) as second:
        assert not set(first.by_name.values()) & set(second.by_name.values())


def test_a_port_that_somebody_else_took_is_left_alone() -> None:
    with reserved(NAMES, 0) as first:
        pass
    with socket.create_server(("127.0.0.1", first["kafka"])):
        assert not is_free(first["kafka"])
        with reserved(NAMES, first.block) as second:
            assert first["kafka"] not in second.by_name.values()


def test_the_shell_reads_the_environment_as_it_was_written(directory: Directory) -> None:
    variables = {"KEYLEDGER_URL": "http://127.0.0.1:8080", "KEYLEDGER_API_KEY": 'a\'b "c" $d'}
    environment.write(directory.env, variables)
    script = f'. {directory.env}; printf "%s|%s" "$KEYLEDGER_URL" "$KEYLEDGER_API_KEY"'
    read = subprocess.run(("sh", "-c", script), capture_output=True, text=True, check=True)
    assert read.stdout == "|".join(variables.values())
    assert environment.read(directory.env) == variables


def test_secrets_are_readable_by_their_owner_alone(directory: Directory) -> None:
    environment.write(directory.env, {"KEYLEDGER_API_KEY": "secret"})
    load(directory)
    identity.ensure(*pair(directory))
    for path in (directory.env, directory.state, *directory.secrets.iterdir()):
        assert mode(path) == 0o600, path
    assert mode(directory.secrets) == 0o700


def pair(directory: Directory) -> tuple[Path, Path]:
    return directory.secrets / "identity.pem", directory.secrets / "identity-public.pem"


def test_identity_keys_are_made_once(directory: Directory) -> None:
    identity.ensure(*pair(directory))
    before = {path.name: path.read_text() for path in directory.secrets.iterdir()}
    identity.ensure(*pair(directory))
    assert {path.name: path.read_text() for path in directory.secrets.iterdir()} == before
    assert sorted(before) == ["identity-public.pem", "identity.pem"]
    (directory.secrets / "identity-public.pem").unlink()
    identity.ensure(*pair(directory))
    assert {path.name: path.read_text() for path in directory.secrets.iterdir()} == before


def test_state_is_remembered(directory: Directory) -> None:
    state = load(directory)
    state.block = 20_000
    save(directory, state)
    assert load(directory) == state


def test_data_without_its_passwords_is_not_overwritten(directory: Directory) -> None:
    directory.postgres.mkdir()
    with pytest.raises(StackError, match=r"state\.json is missing.*--purge"):
        load(directory)


def test_what_a_killed_holder_said_is_not_believed(directory: Directory) -> None:
    write_status(directory, {"url": "http://127.0.0.1:1", "ready": True, "processes": [{"name": "gone"}]})
    assert read_status(directory) == {"url": "http://127.0.0.1:1", "ready": False, "stop_seconds": 0, "processes": []}
    with directory.held():
        assert read_status(directory) == {"url": "", "ready": False, "stop_seconds": 0, "processes": []}


def test_one_holder_at_a_time(directory: Directory) -> None:
    with directory.held(), pytest.raises(StackError, match="already running"), directory.held():
        pass
    assert directory.holder() is None


def test_commands_on_nothing_say_so(tmp_path: Path) -> None:
    place = str(tmp_path / "nothing")
    status = keyledger("status", "--dir", place)
    assert (status.returncode, "Nothing is running" in status.stdout) == (1, True)
    down = keyledger("down", "--dir", place)
    assert (down.returncode, "Nothing is running" in down.stdout) == (0, True)
    purge = keyledger("down", "--purge", "--dir", str(tmp_path))
    assert (purge.returncode, "nothing was deleted" in purge.stderr) == (1, True)
    logs = keyledger("logs", "keys-api", "--dir", place)
    assert (logs.returncode, "There is no log keys-api" in logs.stderr) == (1, True)
    key = keyledger("key", "create", "--owner", "1", "--dir", place)
    assert (key.returncode, "There is no stack" in key.stderr) == (1, True)


def test_purge_deletes_only_what_is_the_stacks(directory: Directory) -> None:
    load(directory)
    (directory.root / "notes.txt").write_text("mine")
    assert keyledger("down", "--purge", "--dir", str(directory.root)).returncode == 0
    assert [path.name for path in directory.root.iterdir()] == ["notes.txt"]
