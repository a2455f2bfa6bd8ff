"""The relay against whatever Kafka and its database do, in whatever order: readers of committed records find each event of
the log once, in order, and each stream's last state.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from typing_extensions import override

from shared.kafka import Partition
from shared.partitions import partition_for
from shared.relay.loop import Relay
from shared.settings import Base
from tests.support.fakebroker import Entry, FakeBroker
from tests.support.fakeclients import installed
from tests.support.fakelog import FakeDatabase, logged
from tests.support.relayed import EVENTS, PUBLICATION, STATES
from tests.support.virtual import VirtualLoop

PARTITIONS = 2
ENDED = "counter.ended"
WHAT = replace(PUBLICATION, final=frozenset({ENDED}))
REQUESTS = ("init", "join", "produce", "commit", "fetch", "offsets", "metadata", "create", "settings")
topics = st.sampled_from([EVENTS.name, STATES.name])
numbers = st.integers(0, PARTITIONS - 1)


class World:
    """A log, a broker, and relays between them, on a loop of their own."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self._stack = ExitStack()
        self.relays: list[asyncio.Task[None]] = []
        self.run(self._begin())

    async def _begin(self) -> None:
        self.broker = self._stack.enter_context(installed(FakeBroker()))
        self.database = self._stack.enter_context(logged(FakeDatabase()))

    def run(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def start(self) -> None:
        relay = Relay(Base(kafka="fake:9092", partitions=PARTITIONS), "", WHAT)

        async def start() -> None:
            self.relays.append(asyncio.ensure_future(relay.run(asyncio.Event())))

        self.run(start())

    def kill(self) -> None:
        if self.relays:
            relay = self.relays.pop(0)
            relay.cancel()
            self.run(asyncio.wait([relay]))

    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    def close(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.run(asyncio.wait(tasks)) if tasks else None
        self._stack.close()
        self.loop.close()

    def until(self, done: Callable[[], bool], seconds: float = 600.0) -> None:
        """Lets time pass until it is so; after a long time it raises what is wrong."""
        end = self.loop.time() + seconds
        while not done():
            assert self.loop.time() < end, "it did not come to be"
            self.wait(1.0)

    def settle(self) -> None:
        """Nothing hinders anybody any more, and a relay has had the time to look."""
        self.broker.heal()
        self.database.failing.clear()
        if not self.relays:
            self.start()
        self.until(self._published)
        self.wait(45)
        self.until(self._published)

    def _published(self) -> bool:
        return self.database.checkpoint.position == len(self.database.events) and set(self.broker.topics) == {
            EVENTS.name,
            STATES.name,
        }

    def assert_whole(self) -> None:
        assert self.database.repair is None
        for relay in self.relays:
            assert not relay.done()
        self._assert_events()
        self._assert_states()

    def _assert_events(self) -> None:
        held: dict[str, int] = {}
        taken = []
        for number, values in self.broker.values(EVENTS.name).items():
            for event in (json.loads(value) for value in values if value and value != b"junk"):
                stream, version = event["subject"], event["streamversion"]
                assert number == partition_for(stream.encode(), PARTITIONS)
                if version > held.get(stream, 0):
                    assert version == held.get(stream, 0) + 1, f"{stream} goes from {held.get(stream)} to {version}"
                    held[stream] = version
                    taken.append((event["position"], event["id"]))
        assert sorted(taken) == [(event.position, str(event.event_id)) for event in self.database.events]

    def _assert_states(self) -> None:
        last = self.database.streams()
        due = self.database.now() - WHAT.keep
        kept = {s: e for s, e in last.items() if e.type != ENDED or e.recorded_at >= due}
        for number in range(PARTITIONS):
            log = self.broker.log(Partition(STATES.name, number))
            records = [(entry.key or b"", entry.value) for _, entry in log.committed(log.begin)]
            fold = {key.decode(): json.loads(value) for key, value in records if value and value != b"junk"}
            for key in {key.decode() for key, _ in records}:
                if [value for name, value in records if name == key.encode()][-1] is None:
                    fold.pop(key, None)
            assert records[-1][0] == b"beat-%d" % number
            beat = fold.pop(f"beat-{number}")["data"]
            fold.pop("junk", None)
            assert {stream: state["streamversion"] for stream, state in fold.items()} == {
                s: e.version for s, e in kept.items() if partition_for(s.encode(), PARTITIONS) == number
            }
            assert (beat["position"], beat["streams"]) == (len(self.database.events), len(fold))


class RelayMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.broker, self.database = self.world.broker, self.world.database
        self.world.start()

    @rule(stream=st.integers(0, 5), count=st.integers(1, 4))
    def append(self, stream: int, count: int) -> None:
        if (last := self.database.streams().get(f"a-{stream}")) and last.type == ENDED:
            return
        for _ in range(count):
            self.database.append(f"a-{stream}", "counter.added")

    @rule(stream=st.integers(0, 5))
    def end(self, stream: int) -> None:
        last = self.database.streams().get(f"a-{stream}")
        if last and last.type != ENDED:
            self.database.append(f"a-{stream}", ENDED)

    @rule()
    def a_month_passes(self) -> None:
        self.database.age += WHAT.keep + timedelta(days=1)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.5, 1.0, 4.0, 11.0, 45.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(turns=st.integers(1, 40))
    def turns_pass(self, turns: int) -> None:
        for _ in range(turns):
            self.world.wait(0)

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 4.0]))
    def slow(self, seconds: float) -> None:
        self.broker.slow = seconds

    @rule(stuck=st.booleans())
    def stuck(self, stuck: bool) -> None:
        self.broker.stuck = stuck

    @rule(gone=st.booleans())
    def gone(self, gone: bool) -> None:
        self.broker.gone = gone

    @rule(kind=st.sampled_from(REQUESTS), done=st.booleans())
    def fail(self, kind: str, done: bool) -> None:
        self.broker.fail(kind, done=done)

    @rule(done=st.booleans())
    def the_database_fails(self, done: bool) -> None:
        self.database.failing.append(done)

    @rule(topic=topics, number=numbers, records=st.integers(1, 12))
    def lose_a_tail(self, topic: str, number: int, records: int) -> None:
        if topic in self.broker.topics:
            partition = Partition(topic, number)
            self.broker.lose_tail(partition, self.broker.log(partition).end - records)

    @rule(number=numbers)
    def compact(self, number: int) -> None:
        if STATES.name in self.broker.topics:
            self.broker.compact(Partition(STATES.name, number))

    @rule(topic=topics, junk=st.integers(0, 60))
    def make_anew(self, topic: str, junk: int) -> None:
        """Empty, or so long that no end tells: that is recognised when a term begins (it is nobody's business to write there)."""
        if topic in self.broker.topics:
            while junk and self.world.relays:
                self.world.kill()
            self.broker.delete_topic(topic)
            self.broker.create(topic, PARTITIONS, {})
            for number in range(PARTITIONS):
                self.broker.write(Partition(topic, number), [Entry(b"junk", b"junk", (), 0)] * junk)

    @rule(topic=topics)
    def delete(self, topic: str) -> None:
        self.broker.topics.pop(topic, None)

    @rule()
    def kill(self) -> None:
        self.world.kill()

    @rule()
    def start(self) -> None:
        if len(self.world.relays) < 2:
            self.world.start()

    @rule()
    def settle(self) -> None:
        self.world.settle()
        self.world.assert_whole()

    @invariant()
    def nobody_needs_repair(self) -> None:
        assert self.database.repair is None

    @override
    def teardown(self) -> None:
        try:
            self.world.settle()
            self.world.assert_whole()
        finally:
            self.world.close()


TestRelay = RelayMachine.TestCase
TestRelay.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


@pytest.fixture
def world() -> Any:
    made = World()
    yield made
    made.close()


def test_a_broker_that_takes_four_seconds_gets_everything_through(world: World) -> None:
    """And not again and again: a connection that idles meanwhile loses the lock, one that is used does not."""
    world.start()
    world.settle()
    world.broker.slow = 4.0
    sent = []
    for positions in (20, 40):
        for number in range(20):
            world.database.append(f"a-{number}", "counter.added")
            world.wait(0.1)
        world.until(lambda positions=positions: world.database.checkpoint.position == positions, 300)
        sent.append(sum(map(len, world.broker.values(EVENTS.name).values())))
    # While it is found out how patient to be, some are sent again.
    assert sent[0] <= 3 * 20
    assert sent[1] == sent[0] + 20
    world.settle()
    world.assert_whole()


def test_no_look_reads_the_streams_names(world: World) -> None:
    world.start()
    for number in range(50):
        world.database.append(f"a-{number}", "counter.added")
    world.settle()
    before = world.database.asked["streams"]
    world.wait(100)
    world.kill()
    world.settle()
    assert world.database.asked["streams"] == before
    world.assert_whole()


def test_a_tail_that_is_lost_while_it_is_looked_at_keeps_no_relay_waiting(world: World) -> None:
    world.start()
    for number in range(6):
        world.database.append(f"a-{number}", "counter.added")
    world.settle()
    world.kill()
    world.broker.slow = 1.0
    world.start()
    asked = world.broker.requests["offsets"]
    while world.broker.requests["offsets"] < asked + 2:
        world.wait(0.1)
    for number in range(PARTITIONS):
        world.broker.lose_tail(Partition(STATES.name, number), world.broker.log(Partition(STATES.name, number)).end - 1)
    world.database.append("a-0", "counter.added")
    world.settle()
    world.assert_whole()
