"""The consumer's loop on a broker and a database that fail in every order: each event is stored once, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, product

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client import REGISTRY
from typing_extensions import override

from shared.consumer.intake import LogMark
from shared.consumer.poison import Tolerance
from shared.kafka import Partition
from shared.partitions import partition_for
from tests.integration.usage.traffic import Log, Written
from tests.unit.shared.consumer.world import BAD, PARTITIONS, REQUESTS, STREAMS, WORSE, World, event, new_log


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


def shipped(world: World, number: int) -> None:
    log = new_log()
    records = [log.write(1 + index % 20) for index in range(number)]
    world.expect(records)
    world.ship(records)


def relayed(world: World, stream: str, first: int, last: int) -> None:
    world.relay([(stream, event(stream, version)) for version in range(first, last + 1)])
    world.good += [(stream, version) for version in range(first, last + 1)]


def test_everything_is_stored(world: World) -> None:
    shipped(world, 100)
    relayed(world, "stream-a", 1, 20)
    world.start()
    world.settle()


def test_partitions_that_were_taken_away_are_not_told_as_read(world: World) -> None:
    """Also when nothing comes that would show it: a client that joins again still names the former ones."""
    first = world.start()
    world.until(world.ready, 20)
    assert first.consumer.checks()["consumer"]().detail == "6 partitions"
    second = world.start()
    world.run(20)
    assert [each.consumer.checks()["consumer"]().detail for each in (first, second)] == ["3 partitions"] * 2


def test_halted_partition_keeps_its_consumer_in_the_group(world: World) -> None:
    """A pause is no standstill: others are read on, and nobody joins anew."""
    relayed(world, "stream-a", 1, 3)
    world.relay([("stream-a", event("stream-a", 5))])
    running = world.start()
    world.run(5)
    joins = world.broker.requests["join group"]
    world.run(50)
    assert "goes on with version 5" in running.consumer.checks()["consumer"]().detail
    assert world.broker.requests["join group"] == joins
    shipped(world, 30)
    world.until(lambda: set(world.good) == set(world.taken()), 5)


def test_halted_partition_is_tried_again_by_itself(world: World) -> None:
    relayed(world, "stream-a", 1, 3)
    world.relay([("stream-a", event("stream-a", 5))])
    world.start()
    world.run(20)
    world.broker.lose_tail(world.partition("stream-a"), 3)
    relayed(world, "stream-a", 4, 6)
    world.settle()


def test_lost_tail_is_read_again_where_marks_drop_what_is_known(world: World) -> None:
    """Of records that were written over what was lost, none is passed."""
    log = new_log()
    records = [log.write(1) for _ in range(10)]
    partition = Partition(REQUESTS.name, records[0].partition)
    world.expect(records)
    world.ship(records)
    running = world.start()
    world.until(world.settled, 20)
    world.end(running)
    world.broker.lose_tail(partition, 4)
    other = new_log()
    more = [other.write(1) for _ in range(3)]
    world.expect(more)
    world.ship(more)
    world.settle()


def test_topic_made_anew_is_read_from_its_start_though_it_is_longer(world: World) -> None:
    shipped(world, 30)
    world.start()
    world.until(world.settled, 20)
    world.broker.delete_topic(REQUESTS.name)
    world.broker.create(REQUESTS.name, PARTITIONS, {})
    shipped(world, 90)
    world.settle()


def test_hung_database_is_told_and_nothing_is_lost_or_doubled(world: World) -> None:
    shipped(world, 30)
    running = world.start()
    world.until(world.settled, 20)
    world.database.hang()
    shipped(world, 30)
    world.run(16)
    assert "nothing has gone on for" in running.consumer.checks()["consumer"]().detail
    world.run(120)
    assert not world.ready()
    world.settle()


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("after", range(12))
def test_transaction_that_fails_takes_what_was_prepared_behind_it_along(world: World, after: int, done: bool) -> None:
    """Marks that are ahead of the database would drop its records as duplicates; a batch that was kept would skip them."""
    world.start()
    world.until(world.ready, 20)
    shipped(world, 30)
    world.until(world.settled, 20)
    world.database.pace, world.broker.short = 0.2, 4
    world.database.fail(after, done=done)
    shipped(world, 60)
    world.run(20)
    world.settle()


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.3, 1.8, 2.3, 2.8])
def test_batch_that_another_stores_meanwhile_is_stored_once(world: World, seconds: float) -> None:
    """Whoever was stopped with it finds the offset moved, and what it prepared behind it is void as well."""
    log = new_log()
    records = [log.write(1) for _ in range(20)]
    world.start()
    world.until(world.ready, 20)
    world.database.pace, world.broker.short = 0.5, 5
    world.expect(records)
    world.ship(records)
    world.run(seconds)
    tables, partition = world.database.tables, Partition(REQUESTS.name, records[0].partition)
    held = tables.offsets[partition]
    others = records[held.next : held.next + 8]
    tables.taken += [(log.id, record.event.data.sequence) for record in others]
    tables.marks[log.id, partition.partition] = LogMark(others[-1].event.data.sequence)
    tables.offsets[partition] = held.moved(held.next + len(others))
    world.settle()


def on(world: World, partition: int, log: Log, statuses: Sequence[int]) -> list[Written]:
    """Records of a log, shipped to one partition."""
    key = next(key for key in count(1) if partition_for(b"key-%d" % key, PARTITIONS) == partition)
    records = [log.write(key, status_code=status) for status in statuses]
    world.expect(records)
    world.ship(records)
    return records


def test_transaction_that_fails_is_done_again_though_nothing_more_comes(world: World) -> None:
    world.start()
    world.until(world.ready, 20)
    for after, done in product(range(12), [False, True]):
        shipped(world, 10)
        world.database.fail(after, done=done)
        world.run(20)
        world.settle()


def test_marks_are_of_after_what_was_taken_with_care(world: World) -> None:
    """Those in memory of another partition, read in the meantime, are of before: what is sent again would fall into a gap."""
    running = world.start()
    world.until(world.ready, 20)
    world.broker.short, world.database.pace = 4, 0.5
    log = new_log()
    on(world, 1, new_log(), [200, 200, 200, WORSE, 200, 200])
    world.until(lambda: bool(running.consumer._doubted), 20)
    records = on(world, 0, log, [200] * 6)
    world.until(world.settled, 60)
    records += on(world, 0, log, [200] * 6)
    world.settle()
    world.ship(records)
    world.run(20)
    world.check()
    assert all(not mark.gaps for mark in world.database.tables.marks.values())


def test_marks_of_many_logs_are_forgotten_when_they_are_stored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for while the transaction that moves them is under way they would be those of before."""
    monkeypatch.setattr("shared.consumer.positions._MARKS", 2)
    world.start()
    world.until(world.ready, 20)
    world.broker.short, world.database.pace = 4, 0.2
    logs = [new_log() for _ in range(4)]
    records = [log.write(1 + index) for index in range(20) for log in logs]
    world.expect(records)
    world.ship(records)
    world.until(world.settled, 200)
    world.ship(records)
    world.run(200)
    world.check()
    assert all(not mark.gaps for mark in world.database.tables.marks.values())


def test_what_is_prepared_and_not_stored_is_told_to_nobody(world: World) -> None:
    world.start()
    world.until(world.ready, 20)
    log = new_log()
    on(world, 0, log, [200] * 10)
    world.until(world.settled, 20)
    world.run(10)
    committed = dict(world.broker.groups["group"].committed)
    assert committed[Partition(REQUESTS.name, 0)] == 10
    world.database.hang()
    on(world, 0, log, [200] * 10)
    world.run(20)
    assert world.broker.groups["group"].committed == committed
    world.settle()


def test_no_transaction_is_begun_that_the_one_before_it_voids(world: World) -> None:
    """By poison, by partitions that come back, by more that comes while the database takes its time."""
    superseded = _superseded()
    world.start()
    world.until(world.ready, 20)
    world.broker.short, world.database.pace = 4, 1.0
    log = new_log()
    on(world, 0, log, [*[200] * 26, BAD, *[200] * 20, WORSE, *[200] * 6])
    world.until(world.settled, 500)
    for seconds in (1.0, 2.5, 4.0):
        on(world, 0, log, [200] * 8)
        world.run(seconds)
        world.run_to_end(world.broker.rebalance("group"))
        world.until(world.settled, 500)
    assert _superseded() == superseded


def _superseded() -> float:
    return REGISTRY.get_sample_value("keyledger_consumer_superseded_total") or 0.0


def test_stuck_broker_is_told(world: World) -> None:
    running = world.start()
    world.until(world.ready, 20)
    world.broker.stuck = True
    world.run(20)
    assert not running.consumer.checks()["consumer"]().ready
    shipped(world, 30)
    world.settle()


def test_client_that_gives_nothing_though_there_is_more_is_made_anew(world: World) -> None:
    world.start()
    world.until(world.ready, 20)
    world.broker.silent = True
    shipped(world, 30)
    joins = world.broker.requests["join group"]
    world.run(60)
    assert world.broker.requests["join group"] > joins
    world.settle()


def test_error_that_nobody_thought_of_ends_no_process(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("what nobody thought of")

    with monkeypatch.context() as patched:
        patched.setattr("shared.consumer.batch.read_logs", fault)
        shipped(world, 10)
        running = world.start()
        world.run(100)
        assert running.consumer.checks()["consumer"]().detail == "RuntimeError: what nobody thought of"
        assert world.broker.requests["join group"] < 15
    world.settle()


def test_after_too_much_poison_it_is_not_ready_until_something_was_stored(world: World) -> None:
    log = new_log()
    bad = [log.write(key, owner_id=key, status_code=BAD) for key in range(1, 30)]
    world.ship(bad)
    running = world.start(Tolerance())
    world.run(10)
    for _ in range(100):
        world.run(1.1)
        assert not running.consumer.checks()["consumer"]().ready
    assert world.broker.requests["join group"] < 10
    assert not world.database.tables.letters


numbers = st.integers(0, 5)


class Faults(RuleBasedStateMachine):
    """Producers that repeat, lose and resend; a broker and a database that fail; consumers that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World().__enter__()
        self.logs = [new_log(), new_log()]
        self.sent: list[list] = [[], []]  # type: ignore[type-arg]
        self.closed: list[list] = []  # type: ignore[type-arg]
        self.late: list = []  # type: ignore[type-arg]
        self.versions: dict[str, int] = {}
        self.junk = count()
        self.history: list[tuple[str, bytes]] = []

    @rule(
        which=st.integers(0, 1),
        number=st.integers(1, 30),
        odd=st.sampled_from([200, 200, 200, BAD, WORSE]),
        lost=st.booleans(),
    )
    def ship(self, which: int, number: int, odd: int, lost: bool) -> None:
        log = self.logs[which]
        records = [log.write(1 + index % 7, status_code=odd if index == 3 else 200) for index in range(number)]
        self.world.expect(records)
        self.sent[which] += records
        if lost:
            self.late += records
        else:
            self.world.ship(records)

    @rule()
    def resend_what_is_late(self) -> None:
        self.world.ship(self.late)
        self.late = []

    @rule(which=st.integers(0, 1), back=st.integers(1, 40))
    def ship_again(self, which: int, back: int) -> None:
        self.world.ship(self.sent[which][-back:])

    @rule(which=st.integers(0, 1))
    def close_log(self, which: int) -> None:
        log = self.logs[which]
        closing = log.close()
        self.world.ship(closing)
        self.closed.append(self.sent[which] + closing)
        self.sent[which] = []
        self.logs[which] = new_log()

    @rule(stream=st.sampled_from(["stream-a", "stream-b", "stream-c"]), number=st.integers(1, 8), bad=numbers)
    def relay(self, stream: str, number: int, bad: int) -> None:
        first = self.versions.get(stream, 0) + 1
        values = []
        for version in range(first, first + number):
            if bad == 1 and version % 3 == 0:
                values.append((stream, event(stream, version, bad=True)))
                self.world.bad[values[-1][1]] += 1
            elif bad == 2 and version % 3 == 0:
                values.append((stream, b"junk %d" % next(self.junk)))
                self.world.bad[values[-1][1]] += 1
            else:
                values.append((stream, event(stream, version)))
                self.world.good.append((stream, version))
        self.versions[stream] = first + number - 1
        self.history += values
        self.world.relay(values)

    @rule(stream=st.sampled_from(["stream-a", "stream-b"]))
    def relay_aborts(self, stream: str) -> None:
        following = self.versions.get(stream, 0) + 1
        self.world.relay([(stream, event(stream, following))], commit=False)

    @precondition(lambda self: self.history)
    @rule(back=st.integers(1, 10))
    def relay_repeats(self, back: int) -> None:
        """From a checkpoint of before. Junk is not repeated: by it nobody could tell what it repeats."""
        again = [each for each in self.history[-back:] if not each[1].startswith(b"junk")]
        if again:
            self.world.relay(again)

    @precondition(lambda self: len(self.world.running) < 3)
    @rule()
    def start(self) -> None:
        self.world.start()

    @precondition(lambda self: self.world.running)
    @rule(which=numbers, kill=st.booleans())
    def stop(self, which: int, kill: bool) -> None:
        running = self.world.running[which % len(self.world.running)]
        (self.world.kill if kill else self.world.end)(running)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 2.0, 20.0, 70.0]))
    def run(self, seconds: float) -> None:
        self.world.run(seconds)

    @precondition(lambda self: self.world.running)
    @rule(late=st.booleans())
    def rebalance(self, late: bool) -> None:
        if (group := self.world.broker.groups.get("group")) and group.members:
            group.late = late
            self.world.run_to_end(self.world.broker.rebalance("group"))

    @rule(after=st.integers(0, 12), done=st.booleans())
    def database_fails(self, after: int, done: bool) -> None:
        self.world.database.fail(after, done=done)

    @rule(pace=st.sampled_from([0.0, 0.01, 0.2, 1.0]))
    def database_slows(self, pace: float) -> None:
        """So that what comes meanwhile is prepared before it is known how the transaction ended."""
        self.world.database.pace = pace

    @rule(hangs=st.booleans())
    def database_hangs(self, hangs: bool) -> None:
        if hangs:
            self.world.database.hang()
        else:
            self.world.database.heal()

    @rule(
        mode=st.sampled_from(["stuck", "slow", "gone", "silent", "short", "well"]),
        kind=st.sampled_from(["fetch", "offsets", "metadata", "offset commit"]),
    )
    def broker_fails(self, mode: str, kind: str) -> None:
        broker = self.world.broker
        match mode:
            case "slow":
                broker.slow = 4.0
            case "short":
                broker.short = 3
            case "well":
                broker.heal()
                broker.fail(kind, done=False)
            case _:
                setattr(broker, mode, True)

    @precondition(lambda self: any(self.sent) or self.closed)
    @rule(number=st.integers(0, PARTITIONS - 1), end=st.integers(0, 30))
    def tail_is_lost(self, number: int, end: int) -> None:
        """Its producers send again what is not in the log, of closed logs too: they keep what may not have been stored."""
        self.world.broker.lose_tail(Partition(REQUESTS.name, number), end)
        for records in (*self.closed, *self.sent):
            self.world.ship([record for record in records if record.partition == number])

    @rule(number=st.integers(0, PARTITIONS - 1), end=st.integers(0, 30))
    def stream_tail_is_lost(self, number: int, end: int) -> None:
        if any(value.startswith(b"junk") for _, value in self.history):
            return  # not repeated, so it could be lost
        partition = Partition(STREAMS.name, number)
        self.world.broker.lose_tail(partition, end)
        again = [each for each in self.history if self.world.partition(each[0]) == partition]
        if again:
            self.world.relay(again)

    @invariant()
    def nothing_twice(self) -> None:
        self.world.check()

    @override
    def teardown(self) -> None:
        try:
            self.world.ship(self.late)
            self.world.settle()
        finally:
            self.world.__exit__()


TestFaults = Faults.TestCase
TestFaults.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
