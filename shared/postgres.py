"""PostgreSQL for every service: a pool with deadlines, migrations, and the error that means "the database is away"."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import structlog
from psycopg import AsyncConnection, _copy_base, adapters, errors
from psycopg.adapt import Dumper, Transformer
from psycopg.pq import Format
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from typing_extensions import override

from shared.errors import Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 7_316_001
_OPTIONS = "-c idle_in_transaction_session_timeout=5s -c lock_timeout=%dms -c statement_timeout=%dms"
BATCH_STATEMENT = 30.0
"""How long (s) a statement on thousands of rows may take, of a consumer or a leader."""
# A host that vanished is found out within about ten seconds; the kernel's own patience is a quarter of an hour.
_SOCKET = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_CHECK_SECONDS = 2.0
_LOCK = 5.0
_MARGIN = 2.0
_MIGRATION_LOCK_WAIT = 2.0
_MIGRATION_TRIES = 60
_log = structlog.get_logger()

AWAY: tuple[type[BaseException], ...] = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    errors.ReadOnlySqlTransaction,
)


class Connection(AsyncConnection[DictRow]):
    """A connection on which no wait for the server outlasts `patience` (s): whatever is done on it then fails (`AWAY`).

    A server that hangs instead of refusing ends no statement itself, and the kernel goes on acknowledging for it.
    """

    patience: float | None = None

    @override
    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """What every exchange with the server waits by."""
        if self.patience is None:
            return await super().wait(gen, *args, **options)
        with _cut_after(self, self.patience):
            return await super().wait(gen, *args, **options)


Pool = AsyncConnectionPool[Connection]


@asynccontextmanager
async def open_pool(dsn: str, *, size: int = 8, wait: float = 3.0, statement: float = 4.0) -> AsyncIterator[Pool]:
    """A pool of at most `size` connections; a caller waits at most `wait` seconds for one. Opens without the database.

    The server ends a statement after `statement` seconds. That is less than `transaction` gives, so that nothing goes on
    there that nobody waits for any more; a server that does not even do that is given up two seconds later.
    """

    async def configure(connection: Connection) -> None:
        connection.patience = statement + _MARGIN

    pool: Pool = AsyncConnectionPool(
        dsn,
        connection_class=Connection,
        kwargs={"row_factory": dict_row, "options": _options(statement), **_SOCKET},
        min_size=1,
        max_size=size,
        timeout=wait,
        reconnect_timeout=5.0,
        check=_check,
        configure=configure,
        open=False,
    )
    await pool.open(wait=False)
    try:
        yield pool
    finally:
        await pool.close(timeout=2.0)


def _options(statement: float, lock: float = _LOCK) -> str:
    return _OPTIONS % (lock * 1000, statement * 1000)


async def _check(connection: Connection) -> None:
    with _cut_after(connection, _CHECK_SECONDS):
        await AsyncConnectionPool.check_connection(connection)


@contextmanager
def _cut_after(connection: Connection, seconds: float) -> Iterator[None]:
    """Shuts the connection's socket down after `seconds`: whatever waits for the server then fails at once.

    A server that hangs instead of refusing answers neither a statement nor the request to cancel it, and the kernel
    goes on acknowledging for it, so that only this side can end the wait.
    """

    def cut() -> None:
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(seconds, cut)
    try:
        yield
    finally:
        timer.cancel()


class Bigints(tuple[int, ...]):
    """A bigint[] as a parameter: packed at once. The library goes through a list one by one, twenty times as long."""


class _Pack(Dumper):
    format = Format.BINARY
    oid = adapters.types["int8"].array_oid

    @override
    def dump(self, obj: Bigints) -> bytes:
        count = len(obj)
        sized = [8] * (2 * count)
        sized[1::2] = obj
        head = (1, 0, adapters.types["int8"].oid, count, 1) if count else (0, 0, adapters.types["int8"].oid)
        return struct.pack(f"!{len(head)}i{'iq' * count}", *head, *sized)


adapters.register_dumper(Bigints, _Pack)


class BinaryRows:
    """Rows with columns of `types`, encoded as `COPY ... (FORMAT BINARY)` takes them, before there is a connection.

    By the library's own encoder, which its COPY awaits for each row: that takes longer than the encoding.
    """

    def __init__(self, types: Sequence[str]) -> None:
        self._transformer = Transformer()
        self._transformer.set_dumper_types([adapters.types.get_oid(name) for name in types], Format.BINARY)
        self._encoded = bytearray(_copy_base._binary_signature)

    def extend(self, rows: Iterable[Sequence[Any]]) -> None:
        """Appends rows. Raises what is wrong with their values."""
        encode, transformer, encoded = _copy_base.format_row_binary, self._transformer, self._encoded
        for row in rows:
            encode(row, transformer, encoded)

    async def store(self, connection: Connection, copy: LiteralString) -> None:
        """Stores them by this COPY."""
        async with connection.cursor() as cursor, cursor.copy(copy) as copying:
            await copying.write(self._encoded)
            await copying.write(_copy_base._binary_trailer)


@asynccontextmanager
async def transaction(pool: Pool, *, longest: float = 5.0) -> AsyncIterator[Connection]:
    """One transaction of at most `longest` seconds.

    `Unavailable` (503) when the database can't be asked, does not answer, or the connection broke on the way: the
    transaction may then have been committed all the same.
    """
    try:
        async with pool.connection() as connection:
            with _cut_after(connection, longest):
                async with connection.transaction():
                    yield connection
    except AWAY as error:
        raise Unavailable("The database is not available.") from error


async def connect(dsn: str, *, idle_session_timeout: str | None = None) -> Connection:
    """A connection of one's own, in autocommit: for LISTEN and session locks. Raises one of `AWAY`."""
    options = _options(BATCH_STATEMENT) + (
        f" -c idle_session_timeout={idle_session_timeout}" if idle_session_timeout else ""
    )
    connection = await _connect(dsn, options)
    connection.patience = BATCH_STATEMENT + _MARGIN
    return connection


async def _connect(dsn: str, options: str) -> Connection:
    return await Connection.connect(dsn, autocommit=True, row_factory=dict_row, options=options, **_SOCKET)


async def migrate(dsn: str, directories: Sequence[Path], *, wait: float = 60.0) -> list[str]:
    """Applies the numbered SQL files that the database has not had yet, each in a transaction; returns their names.

    Forward only; a lock lets one process do it; a database that does not answer yet is waited for up to `wait` seconds.
    A file may take as long as it takes, but for locks it waits two seconds at a time, since everybody else waits behind
    it meanwhile, and tries again. A file that changed after it was applied is an error.
    """
    connection = await _connect_within(dsn, wait)
    async with connection:
        await _alone(connection)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, content text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        rows = await (await connection.execute("SELECT name, content FROM migrations")).fetchall()
        had = {row["name"]: row["content"] for row in rows}
        done = []
        for path in (path for directory in directories for path in sorted(directory.glob("*.sql"))):
            name, content = f"{path.parent.parent.name}/{path.parent.name}/{path.name}", path.read_text()
            if name in had:
                if had[name] != content:
                    raise ValueError(f"migration {name} changed after it was applied")
                continue
            await _apply(connection, name, content)
            done.append(name)
        return done


async def _alone(connection: Connection) -> None:
    """Waits for whoever else migrates, however long that takes: it ends, or its connection does."""
    while True:
        row = await (await connection.execute("SELECT pg_try_advisory_lock(%s) AS got", [_MIGRATION_LOCK])).fetchone()
        if row and row["got"]:
            return
        await asyncio.sleep(0.1)


async def _apply(connection: Connection, name: str, content: str) -> None:
    for tries in range(1, _MIGRATION_TRIES + 1):
        try:
            async with connection.transaction():
                await connection.execute(content.encode())
                await connection.execute("INSERT INTO migrations (name, content) VALUES (%s, %s)", [name, content])
            return
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            if tries == _MIGRATION_TRIES:
                raise
            _log.warning("a migration waits for a lock", migration=name, error=str(error).strip(), tries=tries)
            await asyncio.sleep(min(0.1 * tries, 2.0))


async def _connect_within(dsn: str, wait: float) -> Connection:
    deadline = asyncio.get_running_loop().time() + wait
    while True:
        try:
            return await _connect(dsn, _options(0, _MIGRATION_LOCK_WAIT))
        except AWAY:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
