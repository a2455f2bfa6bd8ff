"""Kafka in memory, for tests of what happens when it is slow, stuck, shorter than it was, or made anew.

It keeps what our code relies on: offsets, control records, open and aborted transactions, the last stable offset, epochs
that fence, topics with ids. `tests.support.fakeclients` puts the client library's classes on top of it, so that all of
`shared.kafka` runs as it is; `tests/integration/shared/test_kafka.py` holds it against the real one.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from aiokafka.errors import (
    InvalidTimestampError,
    KafkaConnectionError,
    KafkaError,
    OffsetOutOfRangeError,
    ProducerFenced,
    UnknownTopicOrPartitionError,
)
from aiokafka.structs import TopicPartition as Partition

T = TypeVar("T")

_HOUR_MS = 3600_000


@dataclass(frozen=True)
class Entry:
    """What lies at an offset. A control record (`key` and `value` None, `control`) ends a transaction in its partition."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int
    transaction: Transaction | None = None
    control: bool = False


@dataclass(eq=False)
class Transaction:
    """Open until `committed` is known."""

    began: float
    committed: bool | None = None
    partitions: set[Partition] = field(default_factory=set)


@dataclass
class Log:
    """A partition: what lies at each offset that is left, and the offset of what comes next."""

    entries: dict[int, Entry] = field(default_factory=dict)
    begin: int = 0
    end: int = 0

    def append(self, entry: Entry) -> int:
        self.entries[self.end] = entry
        self.end += 1
        return self.end - 1

    def stable(self) -> int:
        """The last stable offset: that of the first record of a transaction still open, else the end."""
        opened = (at for at, e in self.entries.items() if e.transaction and e.transaction.committed is None)
        return min(opened, default=self.end)

    def committed(self, start: int) -> Iterator[tuple[int, Entry]]:
        """The records that a reader of committed ones gets from an offset on."""
        for at in range(start, self.stable()):
            entry = self.entries.get(at)
            if entry and not entry.control and (entry.transaction is None or entry.transaction.committed):
                yield at, entry


@dataclass
class FakeTopic:
    """A topic, with an id of its own."""

    configs: dict[str, str]
    logs: dict[int, Log]
    id: uuid.UUID = field(default_factory=uuid.uuid4)


@dataclass
class _Coordinated:
    """What the coordinator knows of a transactional id."""

    epoch: int = -1
    open: Transaction | None = None
    timeout: float = 60.0


class Member(Protocol):
    """Who reads in a group: its partitions are taken from it, and others given."""

    read: Sequence[str]

    async def rejoin(self, partitions: Sequence[Partition]) -> None: ...


@dataclass
class Group:
    """Readers that share partitions. `late`: members that notice what changed only when they ask for records."""

    members: list[Member] = field(default_factory=list)
    committed: dict[Partition, int] = field(default_factory=dict)
    late: bool = False
    pending: dict[int, list[Partition]] = field(default_factory=dict)
    turn: int = 0


class FakeBroker:
    """One cluster of one broker. Its modes: `slow` (s before each answer leaves), `stuck`, `gone`; single errors by `fail`.

    For readers: `short` (so many records at most in a fetch, and nothing more at once), `silent` (none, though there are
    some). `groups`: their members, and what they committed.
    """

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.topics: dict[str, FakeTopic] = {}
        self.slow = 0.0
        self.gone = False
        self.silent = False
        self.short: int | None = None
        self.groups: dict[str, Group] = {}
        self.requests: Counter[str] = Counter()
        self._ids: dict[str, _Coordinated] = {}
        self._failing: dict[str, list[bool]] = {}
        self._going = asyncio.Event()
        self._going.set()
        self._grown = asyncio.Event()

    # What a test does to it.

    @property
    def stuck(self) -> bool:
        """Whether requests are taken and not looked at, as by a stopped process."""
        return not self._going.is_set()

    @stuck.setter
    def stuck(self, stuck: bool) -> None:
        if stuck:
            self._going.clear()
        else:
            self._going.set()

    def fail(self, kind: str, *, done: bool) -> None:
        """The next request of a kind is answered by an error; `done`: although it was carried out."""
        self._failing.setdefault(kind, []).append(done)

    def heal(self) -> None:
        """Nothing hinders it any more."""
        self._failing.clear()
        self.slow, self.gone, self.stuck = 0.0, False, False
        self.silent, self.short = False, None

    def lose_tail(self, partition: Partition, end: int) -> None:
        """The partition ends there, as if what came after had never been written."""
        log = self.log(partition)
        for at in [at for at in log.entries if at >= end]:
            del log.entries[at]
        log.end = min(log.end, max(end, log.begin))

    def compact(self, partition: Partition) -> None:
        """Leaves of each key what is newest, and no control records; the end stays where it is."""
        log = self.log(partition)
        newest = {entry.key: at for at, entry in log.committed(log.begin)}
        kept = set(newest.values()) | {at for at in log.entries if at >= log.stable()}
        log.entries = {at: entry for at, entry in log.entries.items() if at in kept}

    def delete_topic(self, name: str) -> None:
        """As an administrator does."""
        del self.topics[name]

    def values(self, topic: str) -> dict[int, list[bytes | None]]:
        """The committed values by partition."""
        found = self.topics[topic].logs
        return {number: [entry.value for _, entry in log.committed(log.begin)] for number, log in found.items()}

    # What it is asked.

    async def request(self, kind: str, effect: Callable[[], T]) -> T:
        """One exchange. Who gives up waiting does not take back what it has sent."""
        return await asyncio.shield(asyncio.ensure_future(self._perform(kind, effect)))

    async def _perform(self, kind: str, effect: Callable[[], T]) -> T:
        self.requests[kind] += 1
        await self._going.wait()
        if self.gone:
            raise KafkaConnectionError("connection refused")
        self._expire()
        waiting = self._failing.get(kind)
        done = waiting.pop(0) if waiting else None
        if done is False:
            raise KafkaError(f"{kind} failed")
        found = effect()
        if kind != "fetch":  # those who wait for records would wake each other for ever
            self._grown.set()
            self._grown = asyncio.Event()
        if self.slow:
            await asyncio.sleep(self.slow)
        if done:
            raise KafkaError(f"{kind} failed, though it was carried out")
        return found

    async def rebalance(self, name: str) -> None:
        """Gives a group's partitions out anew, to each member others than before."""
        group = self.groups[name]
        group.turn += 1
        group.pending = {id(member): [] for member in group.members}
        topics = {topic for member in group.members for topic in member.read if topic in self.topics}
        partitions = [Partition(topic, number) for topic in sorted(topics) for number in self.topics[topic].logs]
        for at, partition in enumerate(partitions):
            member = group.members[(at + group.turn) % len(group.members)]
            group.pending[id(member)].append(partition)
        if not group.late:
            for member in list(group.members):
                await self.noticed(name, member)

    async def noticed(self, name: str, member: Member) -> None:
        """A member learns of what changed."""
        if (partitions := self.groups[name].pending.pop(id(member), None)) is not None:
            # Whoever brought it about may end meanwhile.
            await asyncio.shield(member.rejoin(partitions))

    async def grown(self, seconds: float) -> None:
        """Returns when something happened, or after that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._grown.wait()
        except TimeoutError:
            pass

    def create(self, name: str, partitions: int, configs: Mapping[str, str]) -> None:
        self.topics[name] = FakeTopic(dict(configs), {number: Log() for number in range(partitions)})

    def log(self, partition: Partition) -> Log:
        if partition.topic not in self.topics or partition.partition not in self.topics[partition.topic].logs:
            raise UnknownTopicOrPartitionError(partition.topic)
        return self.topics[partition.topic].logs[partition.partition]

    def open_id(self, name: str, timeout: float) -> int:
        """Fences all that had the transactional id, aborts what they left open; the new epoch."""
        known = self._ids.setdefault(name, _Coordinated())
        self._end(known, committed=False)
        known.epoch += 1
        known.timeout = timeout
        return known.epoch

    def join(self, name: str, epoch: int, partitions: set[Partition]) -> Transaction:
        """Takes partitions into the transaction of an id."""
        known = self._known(name, epoch)
        for partition in partitions:
            self.log(partition)
        known.open = known.open or Transaction(asyncio.get_running_loop().time())
        known.open.partitions |= partitions
        return known.open

    def write(self, partition: Partition, records: list[Entry], name: str | None = None, epoch: int = 0) -> int:
        """Appends; the offset of the first record."""
        transaction = self._known(name, epoch).open if name else None
        if name and transaction is None:
            raise ProducerFenced
        log, topic = self.log(partition), self.topics[partition.topic]
        first, now = log.end, _now_ms()
        by_broker = topic.configs.get("message.timestamp.type") == "LogAppendTime"
        if not by_broker and any(record.timestamp > now + _HOUR_MS for record in records):
            raise InvalidTimestampError
        for record in records:
            at = now if by_broker else record.timestamp
            log.append(Entry(record.key, record.value, record.headers, at, transaction))
        return first

    def commit(self, name: str, epoch: int) -> None:
        """Ends the transaction of an id well."""
        self._end(self._known(name, epoch), committed=True)

    def read(self, partition: Partition, start: int, limit: int) -> tuple[list[tuple[int, Entry]], int]:
        """Committed records from an offset on, and the offset to go on from."""
        log = self.log(partition)
        if not log.begin <= start <= log.end:
            raise OffsetOutOfRangeError({partition: start})
        found = []
        for at, entry in log.committed(start):
            if len(found) == limit:
                return found, found[-1][0] + 1
            found.append((at, entry))
        return found, max(start, log.stable())

    def _known(self, name: str, epoch: int) -> _Coordinated:
        known = self._ids.get(name)
        if known is None or known.epoch != epoch:
            raise ProducerFenced
        return known

    def _end(self, known: _Coordinated, *, committed: bool) -> None:
        if known.open is None:
            return
        known.open.committed = committed
        for partition in sorted(known.open.partitions):
            if partition.topic in self.topics:
                self.log(partition).append(Entry(None, None, (), _now_ms(), known.open, control=True))
        known.open = None

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        for known in self._ids.values():
            if known.open and now - known.open.began > known.timeout:
                self._end(known, committed=False)
                known.epoch += 1


def _now_ms() -> int:
    return int(time.time() * 1000)
