"""A leader's readiness follows what it gets done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest

from shared.kafka import Message, Partition, Producer
from shared.leader import Leader
from shared.postgres import Connection
from shared.settings import Base
from shared.telemetry import Check
from tests.support.fakebroker import FakeBroker
from tests.support.fakeclients import installed
from tests.support.fakelog import FakeDatabase, logged
from tests.support.relayed import EVENTS
from tests.support.virtual import VirtualLoop


class World:
    def __init__(self, stack: ExitStack) -> None:
        self.loop = VirtualLoop()
        self.leaders: list[asyncio.Future[None]] = []
        stack.callback(self.loop.close)
        stack.enter_context(mock.patch("time.monotonic", self.loop.time))
        self.broker, self.database = self._run(self._made(stack))
        stack.callback(self._end)

    async def _made(self, stack: ExitStack) -> tuple[FakeBroker, FakeDatabase]:
        return stack.enter_context(installed(FakeBroker())), stack.enter_context(logged(FakeDatabase()))

    def _run(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def _end(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._run(asyncio.wait(tasks))

    def start(self, work: Callable[[Leader, Connection, Producer], Awaitable[None]]) -> Leader:
        leader = Leader(Base(kafka="fake:9092", partitions=1), "", "test", 1, [EVENTS])

        async def start() -> None:
            term = lambda connection, producer, _: work(leader, connection, producer)  # noqa: E731
            self.leaders.append(asyncio.ensure_future(leader.run(term, asyncio.Event())))

        self._run(start())
        self.wait(1.0)
        return leader

    def wait(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def test_a_leader_whose_work_stands_still_is_not_ready_after_a_while(world: World) -> None:
    going = asyncio.Event()

    async def work(leader: Leader, *_: object) -> None:
        while True:
            leader.check = Check(True, "leading")
            await going.wait()
            await asyncio.sleep(1.0)

    leader = world.start(work)
    world.wait(10)
    assert leader.check == Check(True, "leading")
    world.wait(10)
    assert leader.check == Check(False, "nothing has gone on for 21 s")
    going.set()
    world.wait(2)
    assert leader.check.ready


def test_each_transaction_counts_however_long_the_work_says_nothing(world: World) -> None:
    async def work(leader: Leader, _: Connection, producer: Producer) -> None:
        leader.check = Check(True, "leading")
        for number in range(20):
            await producer.transaction([Message(Partition(EVENTS.name, 0), b"key", b"%d" % number)])
            await asyncio.sleep(4)
        await asyncio.Event().wait()

    leader = world.start(work)
    for _ in range(70):
        world.wait(1.0)
        assert leader.check.ready
    world.wait(40)
    assert not leader.check.ready


@pytest.mark.parametrize("hangs", ["Kafka", "PostgreSQL"])
def test_one_that_hangs_shows_within_seconds_and_says_so(world: World, hangs: str) -> None:
    async def work(leader: Leader, connection: Connection, producer: Producer) -> None:
        while True:
            await connection.execute("SELECT 1")
            await producer.transaction([Message(Partition(EVENTS.name, 0), b"key", b"value")])
            leader.check = Check(True, "leading")
            await asyncio.sleep(0.5)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    leader = world.start(work)
    world.wait(30)
    assert leader.check.ready
    with ExitStack() as hanging:
        if hangs == "Kafka":
            world.broker.stuck = True
        else:
            hanging.enter_context(mock.patch("tests.support.fakelog.FakeConnection.execute", never))
        world.wait(17)
        assert not leader.check.ready


def test_standing_by_is_ready_but_not_while_it_can_t_be_known(world: World) -> None:
    async def work(leader: Leader, *_: object) -> None:
        leader.check = Check(True, "leading")
        await asyncio.Event().wait()

    world.start(work)
    other = world.start(work)
    world.wait(60)
    assert other.check == Check(True, "standing by")

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    with mock.patch("tests.support.fakelog.FakeConnection.execute", never):
        world.wait(17)
        assert not other.check.ready
