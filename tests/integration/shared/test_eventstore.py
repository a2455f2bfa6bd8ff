"""The event store on real PostgreSQL: against a list as its model, under concurrency, and what it must refuse."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from psycopg import errors

from shared.errors import Conflict, Unavailable
from shared.events import NewEvent
from shared.eventstore import Change, append, fold, handle, load, read_log, read_stream, reserve_id
from shared.postgres import Connection, Pool, connect, transaction
from tests.support.eventlog import META, Added, Counter, add, counters, event_log, rows
from tests.support.stack import Servers

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with event_log(database) as pool:
        yield pool


async def _append(pool: Pool, stream: str, held: int, amounts: list[int]) -> int:
    async with transaction(pool) as connection:
        events = [NewEvent(Added(amount=amount)) for amount in amounts]
        return (await append(connection, stream, held, events, META)).position


_streams = st.sampled_from(["a-1", "a-2", "b-1"])
_amounts = st.lists(st.integers(-1000, 1000), min_size=1, max_size=4)


def _machine(dsn: str) -> type[RuleBasedStateMachine]:
    loop = asyncio.new_event_loop()

    class Log(RuleBasedStateMachine):
        """The log is a list of (stream, version, amount)."""

        def __init__(self) -> None:
            super().__init__()
            self.model: list[tuple[str, int, int]] = []
            self.connection = loop.run_until_complete(connect(dsn))
            loop.run_until_complete(self._empty())

        async def _empty(self) -> None:
            await self.connection.execute("DROP SCHEMA public CASCADE")
            await self.connection.execute("CREATE SCHEMA public")
            async with event_log(dsn, size=1):
                pass

        def teardown(self) -> None:  # type: ignore[missing-override-decorator]
            loop.run_until_complete(self.connection.close())

        def _version(self, stream: str) -> int:
            return max((version for name, version, _ in self.model if name == stream), default=0)

        async def _try(self, stream: str, held: int, amounts: list[int]) -> int:
            async with self.connection.transaction():
                events = [NewEvent(Added(amount=amount)) for amount in amounts]
                return (await append(self.connection, stream, held, events, META)).position

        @rule(stream=_streams, amounts=_amounts)
        def append(self, stream: str, amounts: list[int]) -> None:
            held = self._version(stream)
            self.model += [(stream, held + 1 + index, amount) for index, amount in enumerate(amounts)]
            assert loop.run_until_complete(self._try(stream, held, amounts)) == len(self.model)

        @rule(stream=_streams, amounts=_amounts, behind=st.integers(1, 3))
        def conflict(self, stream: str, amounts: list[int], behind: int) -> None:
            """Whoever has read less than there is appends nothing."""
            held = self._version(stream) - behind
            if held >= 0:
                with pytest.raises(errors.UniqueViolation):
                    loop.run_until_complete(self._try(stream, held, amounts))

        @rule(stream=_streams)
        def read(self, stream: str) -> None:
            read = loop.run_until_complete(read_stream(self.connection, stream))
            had = [(version, amount) for name, version, amount in self.model if name == stream]
            assert [(event.version, event.data["amount"]) for event in read] == had
            found = loop.run_until_complete(fold(self.connection, counters(stream), stream))
            assert found.state == (Counter(sum(amount for _, amount in had)) if had else None)
            assert (found.version, len(found.missed)) == (len(had), len(had))

        @rule(after=st.integers(0, 30), limit=st.integers(1, 10))
        def read_on(self, after: int, limit: int) -> None:
            read = loop.run_until_complete(read_log(self.connection, after, limit))
            assert [(e.stream, e.version, e.data["amount"]) for e in read] == self.model[after : after + limit]

        @invariant()
        def positions_have_no_gaps(self) -> None:
            read = loop.run_until_complete(read_log(self.connection, 0, 1000))
            assert [event.position for event in read] == list(range(1, len(self.model) + 1))
            assert all(one.recorded_at <= two.recorded_at for one, two in itertools.pairwise(read))

    return Log


def test_the_log_is_a_list(servers: Servers) -> None:
    with servers.fresh_database() as dsn:
        run_state_machine_as_test(
            _machine(dsn),
            settings=settings(
                max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )


async def test_of_parallel_appends_one_wins_each_version(pool: Pool) -> None:
    async def compete(who: int) -> int:
        won = 0
        for held in range(10):
            try:
                await _append(pool, "a-1", held, [who])
                won += 1
            except errors.UniqueViolation:
                pass
        return won

    wins = await asyncio.gather(*(compete(who) for who in range(8)))
    log = await rows(pool, "SELECT position, version FROM events ORDER BY position")
    assert sum(wins) == len(log) == 10
    assert [(row["position"], row["version"]) for row in log] == [(number, number) for number in range(1, 11)]


async def test_parallel_commands_lose_nothing(pool: Pool) -> None:
    """A command that lost the race is decided again on the new state; one that lost every time says so and leaves nothing."""

    async def command(who: int) -> int:
        try:
            return (await add(pool, f"a-{who % 3}", 1)).version
        except Conflict:
            return 0

    done = [version for version in await asyncio.gather(*(command(who) for who in range(60))) if version]
    assert len(done) >= 20
    totals = await rows(pool, "SELECT sum(total) AS total, sum(version) AS version FROM counters")
    assert (totals[0]["total"], totals[0]["version"]) == (len(done), len(done))
    positions = [row["position"] for row in await rows(pool, "SELECT position FROM events ORDER BY position")]
    assert positions == list(range(1, len(done) + 1))


@pytest.mark.parametrize("races", [1, 3, 4])
async def test_a_command_that_lost_a_race_is_decided_again(pool: Pool, races: int) -> None:
    """Three times; then it is for the caller to try again."""
    seen: list[int] = []

    async def decide(_: Connection, counter: Counter | None) -> list[NewEvent]:
        seen.append(counter.total if counter else 0)
        if len(seen) <= races:
            await add(pool, "a-1", 1)
        return [NewEvent(Added(amount=100))]

    if races < 4:
        done = await handle(pool, counters("a-1"), "a-1", decide, META)
        assert (done.state, done.version) == (Counter(100 + races), races + 1)
    else:
        with pytest.raises(Conflict, match="try again"):
            await handle(pool, counters("a-1"), "a-1", decide, META)
    assert seen == list(range(min(races + 1, 4)))


async def test_a_slow_commit_makes_no_reader_skip(pool: Pool, database: str) -> None:
    """A transaction that sleeps while it holds a position holds up those after it: a reader never sees 2 before 1."""
    await rows_none(
        database,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.stream LIKE 'slow-%' THEN PERFORM pg_sleep(0.3); END IF; RETURN NULL; END $$;"
        " CREATE TRIGGER slow AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    done = asyncio.Event()

    async def read() -> list[str]:
        seen: list[str] = []
        async with await connect(database) as connection:
            while not done.is_set() or len(seen) < 12:
                seen += [event.stream for event in await read_log(connection, len(seen), 100)]
                await asyncio.sleep(0)
        return seen

    reading = asyncio.ensure_future(read())
    names = [f"{'slow' if number % 4 == 0 else 'quick'}-{number}" for number in range(12)]
    await asyncio.gather(*(add(pool, name, 1) for name in names))
    done.set()
    seen = await asyncio.wait_for(reading, 20)
    log = await rows(pool, "SELECT stream, recorded_at FROM events ORDER BY position")
    assert seen == [row["stream"] for row in log]
    assert sorted(seen) == sorted(names)
    assert [row["recorded_at"] for row in log] == sorted(row["recorded_at"] for row in log)


async def rows_none(dsn: str, statement: str) -> None:
    async with await connect(dsn) as connection:
        await connection.execute(statement.encode())


async def test_a_reader_notices_a_hole(pool: Pool, database: str) -> None:
    for number in range(3):
        await add(pool, f"a-{number}", 1)
    await rows_none(database, "ALTER TABLE events DISABLE TRIGGER USER; DELETE FROM events WHERE position = 2")
    async with transaction(pool) as connection:
        with pytest.raises(AssertionError, match="2 expected, 3 found"):
            await read_log(connection, 0, 10)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE events SET type = 'x'", "DELETE FROM events", "TRUNCATE events", "TRUNCATE events CASCADE"],
)
async def test_the_log_is_append_only(pool: Pool, database: str, statement: str) -> None:
    await add(pool, "a-1", 1)
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        await rows_none(database, statement)
    assert len(await rows(pool, "SELECT FROM events")) == 1


async def test_an_event_that_is_appended_is_notified_of(pool: Pool, database: str) -> None:
    async with await connect(database) as listening:
        await listening.execute("LISTEN events")
        await add(pool, "a-1", 1)
        heard = [notice.channel async for notice in listening.notifies(timeout=5, stop_after=1)]
    assert heard == ["events"]


async def test_time_in_the_log_never_goes_back(pool: Pool, database: str) -> None:
    await rows_none(database, "UPDATE log_head SET recorded_at = now() + interval '1 hour'")
    await add(pool, "a-1", 1)
    await add(pool, "a-1", 1)
    log = await rows(pool, "SELECT recorded_at, recorded_at > now() + interval '59 minutes' AS kept FROM events")
    assert [row["kept"] for row in log] == [True, True]


async def test_a_log_that_needs_a_repair_takes_nothing(pool: Pool, database: str) -> None:
    await rows_none(database, "UPDATE log_head SET repair_needed = 'Kafka holds position 9, the log ends at 0'")
    with pytest.raises(Unavailable, match="Kafka holds position 9") as refused:
        await add(pool, "a-1", 1)
    assert (refused.value.code, refused.value.status, refused.value.headers["Retry-After"]) == (
        "repair_needed",
        503,
        "60",
    )
    assert await rows(pool, "SELECT FROM events") == []
    assert await rows(pool, "SELECT position FROM log_head") == [{"position": 0}]
    assert await rows(pool, "SELECT FROM counters") == []


async def test_a_command_without_a_change_appends_nothing(pool: Pool) -> None:
    await add(pool, "a-1", 5)
    done = await add(pool, "a-1")
    assert (done.state, done.version, done.place) == (Counter(5), 1, (1, 1))
    assert len(await rows(pool, "SELECT FROM events")) == 1


async def test_a_command_reads_the_state_and_not_the_history(pool: Pool, database: str) -> None:
    """However long the stream is; and what it reads is what the history tells."""
    for amount in range(1, 30):
        await add(pool, "a-1", amount)
        async with transaction(pool) as connection:
            loaded = await load(connection, counters("a-1"), "a-1")
            folded = await fold(connection, counters("a-1"), "a-1")
        assert (
            (loaded.state, loaded.version)
            == (folded.state, folded.version)
            == (Counter(amount * (amount + 1) // 2), amount)
        )
    await rows_none(database, "ALTER TABLE events RENAME COLUMN data TO unread")
    async with transaction(pool) as connection:
        assert (await load(connection, counters("a-1"), "a-1")).version == 29


async def test_a_stream_whose_row_is_missing_is_written_anew_by_its_next_command(pool: Pool, database: str) -> None:
    await add(pool, "a-1", 5)
    await add(pool, "a-1", 6)
    await rows_none(database, "DELETE FROM counters")
    seen: list[Change[Counter]] = []
    kind = counters("a-1")

    async def project(connection: Connection, change: Change[Counter]) -> None:
        seen.append(change)
        await kind.project(connection, change)

    async def decide(_: Connection, counter: Counter | None) -> list[NewEvent]:
        return [NewEvent(Added(amount=counter.total if counter else 0))]

    for _ in range(2):
        await handle(pool, replace(kind, project=project), "a-1", decide, META)
    added = [[event.amount for event in change.events if isinstance(event, Added)] for change in seen]
    assert added == [[5, 6, 11], [22]]
    assert [(change.before, change.after) for change in seen] == [(None, Counter(22)), (Counter(22), Counter(44))]
    assert await rows(pool, "SELECT version, total FROM counters") == [{"version": 4, "total": 44}]


async def test_a_command_that_fails_leaves_nothing(pool: Pool) -> None:
    async def decide(connection: Connection, _: Counter | None) -> list[NewEvent]:
        await connection.execute("INSERT INTO counters VALUES ('other', 1, 1)")
        raise Conflict

    with pytest.raises(Conflict):
        await handle(pool, counters("a-1"), "a-1", decide, META)
    assert await rows(pool, "SELECT FROM counters") == []


async def test_events_carry_who_and_why_and_keep_the_private_part_apart(pool: Pool) -> None:
    await add(pool, "a-1", 1, 2)
    async with transaction(pool) as connection:
        one, two = await read_stream(connection, "a-1")
    assert one.meta == {"actor": "test", "request_id": "r-1"}
    assert (one.data, one.private) == ({"amount": 1}, {"hash": "secret"})
    assert (one.type, one.schema_version, two.version, two.position) == ("counter.added", 1, 2, 2)
    assert one.event_id != two.event_id


async def test_ids_are_given_once_and_again_to_the_same_command(pool: Pool, database: str) -> None:
    await rows_none(database, "CREATE SEQUENCE ids")
    command = uuid.uuid4()

    async def reserve(command_id: uuid.UUID | None) -> int:
        async with transaction(pool) as connection:
            return await reserve_id(connection, "ids", command_id)

    assert [await reserve(None), await reserve(command), await reserve(command), await reserve(None)] == [1, 2, 2, 3]


async def test_a_command_id_that_races_itself_gets_one_id(pool: Pool, database: str) -> None:
    await rows_none(database, "CREATE SEQUENCE ids")
    command = uuid.uuid4()

    async def reserve() -> int:
        async with transaction(pool) as connection:
            return await reserve_id(connection, "ids", command)

    made = await asyncio.gather(*(reserve() for _ in range(6)))
    assert len(set(made)) == 1
    assert await reserve() == made[0]


async def test_commands_are_forgotten_when_their_time_is_over(pool: Pool, database: str) -> None:
    """A few at a time, so that no command waits for it; those that may still be repeated stay."""
    await rows_none(
        database,
        "CREATE SEQUENCE ids; INSERT INTO commands (id, result, recorded_at)"
        " SELECT gen_random_uuid(), '{\"id\": 1}'::jsonb, now() - interval '91 days' FROM generate_series(1, 25)"
        " UNION ALL SELECT gen_random_uuid(), '{\"id\": 1}'::jsonb, now() - interval '89 days' FROM generate_series(1, 5)",
    )
    held = []
    for _ in range(4):
        async with transaction(pool) as connection:
            await reserve_id(connection, "ids", uuid.uuid4())
        held.append((await rows(pool, "SELECT count(*) AS held FROM commands"))[0]["held"])
    assert held == [21, 12, 8, 9]
