"""Migrations, and what callers are told when the database is away, on real PostgreSQL."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import psycopg
import pytest
import structlog

from shared.errors import Unavailable
from shared.postgres import connect, migrate, open_pool, transaction
from tests.support.eventually import eventually
from tests.support.faults import crash
from tests.support.service import free_port
from tests.support.stack import Servers

pytestmark = pytest.mark.anyio


def _directory(root: Path, name: str, **files: str) -> Path:
    directory = root / name / "migrations"
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (directory / f"{file}.sql").write_text(content)
    return directory


async def _query(dsn: str, query: str) -> list[dict[str, object]]:
    async with await connect(dsn) as connection:
        return await (await connection.execute(query.encode())).fetchall()


async def test_files_are_applied_in_order_and_once(database: str, tmp_path: Path) -> None:
    first = _directory(tmp_path, "b", **{"0001_a": "CREATE TABLE a (n int)", "0002_b": "INSERT INTO a VALUES (1)"})
    second = _directory(tmp_path, "a", **{"0001_c": "INSERT INTO a VALUES (2); INSERT INTO a VALUES (3)"})
    assert await migrate(database, [first, second]) == [
        "b/migrations/0001_a.sql",
        "b/migrations/0002_b.sql",
        "a/migrations/0001_c.sql",
    ]
    assert await migrate(database, [first, second]) == []
    _directory(tmp_path, "b", **{"0003_d": "INSERT INTO a VALUES (4)"})
    assert await migrate(database, [first, second]) == ["b/migrations/0003_d.sql"]
    assert [row["n"] for row in await _query(database, "SELECT n FROM a ORDER BY n")] == [1, 2, 3, 4]


async def test_many_at_once_apply_a_file_once(database: str, tmp_path: Path) -> None:
    directory = _directory(tmp_path, "a", **{"0001_a": "SELECT pg_sleep(0.2); CREATE TABLE a (n int)"})
    done = await asyncio.gather(*(migrate(database, [directory]) for _ in range(5)))
    assert sorted(map(len, done)) == [0, 0, 0, 0, 1]


async def test_a_file_that_fails_leaves_nothing(database: str, tmp_path: Path) -> None:
    directory = _directory(tmp_path, "a", **{"0001_a": "CREATE TABLE a (n int)", "0002_b": "DROP TABLE a; SELECT 1/0"})
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(database, [directory])
    assert await _query(database, "SELECT n FROM a") == []
    _directory(tmp_path, "a", **{"0002_b": "DROP TABLE a"})
    assert await migrate(database, [directory]) == ["a/migrations/0002_b.sql"]


async def test_a_file_that_changed_after_it_was_applied_is_an_error(database: str, tmp_path: Path) -> None:
    directory = _directory(tmp_path, "a", **{"0001_a": "CREATE TABLE a (n int)"})
    await migrate(database, [directory])
    _directory(tmp_path, "a", **{"0001_a": "CREATE TABLE a (n bigint)"})
    with pytest.raises(ValueError, match=r"0001_a\.sql changed"):
        await migrate(database, [directory])


async def test_a_database_that_does_not_answer_is_waited_for_so_long(tmp_path: Path) -> None:
    with pytest.raises(psycopg.OperationalError):
        await migrate(f"postgresql://nobody:x@127.0.0.1:{free_port()}/nothing", [tmp_path], wait=0.3)


async def test_a_migration_may_take_long_but_waits_for_locks_only_a_moment_at_a_time(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody else waits behind it meanwhile."""
    monkeypatch.setattr("shared.postgres._MIGRATION_LOCK_WAIT", 0.1)
    first = "CREATE TABLE a AS SELECT current_setting('statement_timeout') AS statement"
    directory = _directory(tmp_path, "a", **{"0001_a": first})
    await migrate(database, [directory])
    assert await _query(database, "SELECT statement FROM a") == [{"statement": "0"}]
    _directory(tmp_path, "a", **{"0002_b": "ALTER TABLE a ADD COLUMN n int"})
    async with await connect(database) as other:
        with structlog.testing.capture_logs() as logs:
            async with other.transaction():
                await other.execute("SELECT * FROM a")
                migrating = asyncio.create_task(migrate(database, [directory]))
                await eventually(lambda: [each for each in logs if each.get("tries") == 2])
            assert await migrating == ["a/migrations/0002_b.sql"]


async def test_a_server_that_hangs_is_given_up(
    servers: Servers, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends no statement itself, and acknowledges all."""
    monkeypatch.setattr("shared.postgres._MARGIN", 0.5)
    async with open_pool(database, size=1, statement=0.5) as pool:
        with pytest.raises(psycopg.OperationalError):
            async with pool.connection() as connection:
                servers.processes.pause("postgres")
                try:
                    async with asyncio.timeout(20):
                        await connection.execute("SELECT 1")
                finally:
                    servers.processes.resume("postgres")

        async def answers() -> bool:
            async with transaction(pool) as connection:
                return bool(await (await connection.execute("SELECT 1 AS one")).fetchone())

        await eventually(answers)


async def test_without_a_database_a_pool_opens_and_its_callers_are_told() -> None:
    async with open_pool(f"postgresql://nobody:x@127.0.0.1:{free_port()}/nothing", wait=0.5) as pool:
        with pytest.raises(Unavailable) as told:
            async with transaction(pool):
                pass
    assert (told.value.status, told.value.code) == (503, "unavailable")
    assert int(told.value.headers["Retry-After"]) > 0


async def test_a_pool_outlives_a_crash_of_the_server(servers: Servers, database: str) -> None:
    async with open_pool(database, size=4) as pool:

        async def ask() -> bool:
            async with transaction(pool) as connection:
                return (await (await connection.execute("SELECT 1 AS one")).fetchone()) == {"one": 1}

        assert all(await asyncio.gather(*(ask() for _ in range(4))))
        await crash(servers, "postgres")
        await eventually(ask)
        assert all(await asyncio.gather(*(ask() for _ in range(8))))


async def test_a_connection_that_breaks_within_a_transaction_is_unavailable(database: str) -> None:
    async with open_pool(database) as pool:
        with pytest.raises(Unavailable):
            async with transaction(pool) as connection:
                await connection.execute("CREATE TABLE a (n int)")
                pid = connection.info.backend_pid
                async with await connect(database) as other:
                    await other.execute("SELECT pg_terminate_backend(%s)", [pid])
                await eventually(lambda: _broken(connection.execute("SELECT 1")))
                await connection.execute("SELECT 1")
    assert await _query(database, "SELECT FROM pg_tables WHERE tablename = 'a'") == []


async def test_a_statement_ends_before_its_transaction_is_given_up(database: str) -> None:
    """On the server too: nothing goes on there for somebody who has had an answer."""
    sleeping = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(60)'"
    limit = inspect.signature(transaction).parameters["longest"].default
    async with open_pool(database) as pool, transaction(pool) as connection:
        query = "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"
        [row] = await (await connection.execute(query)).fetchall()
        assert row["setting"] <= limit * 1000 - 500
    async with open_pool(database, statement=0.1) as pool:
        with pytest.raises(Unavailable) as told:
            async with transaction(pool) as connection:
                await connection.execute("SELECT pg_sleep(60)")
        assert isinstance(told.value.__cause__, psycopg.errors.QueryCanceled)
        assert await _query(database, f"{sleeping} AND state = 'active'") == []


async def _broken(asking: object) -> bool:
    try:
        await asking  # type: ignore[misc]
    except psycopg.OperationalError:
        return True
    return False


async def test_an_error_of_the_caller_s_own_passes_through_and_rolls_back(database: str) -> None:
    async with open_pool(database) as pool:
        with pytest.raises(ZeroDivisionError):
            async with transaction(pool) as connection:
                await connection.execute("CREATE TABLE a (n int)")
                raise ZeroDivisionError
    assert await _query(database, "SELECT FROM pg_tables WHERE tablename = 'a'") == []


async def test_a_session_that_is_not_used_is_ended(database: str) -> None:
    """What a relay that was stopped loses its lock by."""
    idle = await connect(database, idle_session_timeout="200ms")
    await idle.execute("SELECT pg_advisory_lock(1)")
    async with await connect(database) as other:

        async def got() -> bool:
            row = await (await other.execute("SELECT pg_try_advisory_lock(1) AS got")).fetchone()
            return row == {"got": True}

        await eventually(got, 5)
    with pytest.raises(psycopg.OperationalError):
        await idle.execute("SELECT 1")


async def test_a_transaction_that_idles_is_ended(database: str) -> None:
    async with open_pool(database) as pool, pool.connection() as connection:
        row = await (await connection.execute("SHOW idle_in_transaction_session_timeout")).fetchone()
        assert row == {"idle_in_transaction_session_timeout": "5s"}
