"""Follows `key-states` into the replica, for as long as the agent runs, and declares when the replica may be read.

What comes is applied to the copy that serves in any case: a revocation does not wait for anything. When that copy can't
be trusted to be whole, the topic is read from its start into a second one beside it, which takes its place as soon as it
holds what the heartbeats say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import lmdb
import structlog

from services.edge.agent.complaint import Complaint
from services.edge.agent.topics import exists
from services.edge.clock import SECOND, boot_ns
from services.edge.replica.readiness import go_on_from, matches, may_serve, reported
from services.edge.replica.rules import StateBatch
from services.edge.replica.writer import ReplicaWriter
from shared.events.topics import KEY_STATES
from shared.kafka import KafkaUnavailable, Partition, Reader, Record, cluster_id, still_cluster
from shared.settings import Base

_TURN_MS = 250
_WATCH = 0.1
_ABSENT = 0.5
_BACKOFF = (0.1, 0.2, 0.5)
# The relay beats each second: after so long a silence the broker may be another one at the same address.
_SUSPICIOUS = 2.0
_PROBE_DEADLINE = 3.0
# A heartbeat met while catching up is news only when it is no older than this, by the clocks of both machines.
_RECENT = 5.0
_READERS_EVERY = 30.0
# A disk that is full, or failing, is no reason to stop: with the rest of the agent that makes room.
_DISK = (lmdb.Error, OSError)
_log = structlog.get_logger()


class Follower:
    """The agent's first half. `changed` is called after each commit that brought keys or owners.

    `patience`: seconds without Kafka after which a complete replica of an earlier run serves alone.
    """

    def __init__(
        self,
        settings: Base,
        replica: ReplicaWriter,
        patience: float,
    ) -> None:
        self._settings = settings
        self._serving = replica
        self._second: ReplicaWriter | None = None
        self._patience = patience
        self.changed: Callable[[], None] = lambda: None
        self._cluster = ""
        self._reachable = False
        self._contact = time.monotonic()
        self._heard = 0.0
        self._ends: dict[int, int] = {}
        self._caught_up: set[int] = set()
        self._whole: set[int] = set()
        self._readers_checked = time.monotonic()
        self._complaint = Complaint("following interrupted")
        self.problem = "starting"

    @property
    def ready(self) -> bool:
        """Whether the replica may be read."""
        return self._serving.meta.ready

    @property
    def reloading(self) -> bool:
        """Whether a second copy is being loaded because the one that serves is not known to be whole."""
        return self._second is not None

    @property
    def malformed(self) -> int:
        """Records that made no sense."""
        return self._serving.malformed

    @property
    def held(self) -> int:
        """Keys and owners in the copy that serves."""
        return sum(self._serving.meta.held)

    @property
    def applied(self) -> tuple[int, dict[int, int]]:
        """The newest epoch and, by partition that was read to its end, the position of its last heartbeat."""
        return reported({number: self._serving.meta.beats[number] for number in self._caught_up})

    @property
    def freshness(self) -> float | None:
        """The age (s) of the last heartbeat in the partition that has waited longest for one; None before the first."""
        oldest = min(self._serving.meta.beat_ns)
        return (boot_ns() - oldest) / SECOND if oldest else None

    async def run(self) -> None:
        """For ever, until cancelled. `PartitionsChanged` when the topic has another number."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._follow())

    async def _watch(self) -> None:
        while True:
            try:
                self._judge()
                if time.monotonic() - self._readers_checked > _READERS_EVERY:
                    self._readers_checked = time.monotonic()
                    self._serving.check_readers()
            except _DISK as error:
                self._complaint.tell(error)
            await asyncio.sleep(_WATCH)

    def _judge(self) -> None:
        meta = self._serving.meta
        whole = self._second is None and len(self._whole) == meta.partitions
        ready = may_serve(
            ready=meta.ready,
            whole=whole,
            complete=meta.complete,
            reachable=self._reachable,
            silent=time.monotonic() - self._contact,
            patience=self._patience,
        )
        if (ready, whole or meta.complete) != (meta.ready, meta.complete):
            self._serving.declare(ready=ready, complete=whole or meta.complete)
            _log.info("the replica may be read", held=self.held, complete=whole, kafka=self._reachable)

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                await self._session()
                failures = 0
            except lmdb.PanicError:
                # The environment can't be used any more in this process.
                raise
            except (KafkaUnavailable, *_DISK) as error:
                # What could not be written is read again: the offsets in the copy have not moved.
                failures = 0 if self._caught_up else failures + 1
                self._reachable = not isinstance(error, KafkaUnavailable)
                self._caught_up.clear()
                self.problem = str(error)
                self._complaint.tell(error)
            await asyncio.sleep(_BACKOFF[min(failures, len(_BACKOFF) - 1)])

    async def _session(self) -> None:
        """The life of one Kafka client: until it fails, or all is to be read from the start."""
        self._cluster = await cluster_id(self._settings.kafka)
        self._reached()
        if not await exists(self._settings, KEY_STATES):
            self.problem = f"topic {KEY_STATES.name} is not there yet"
            await asyncio.sleep(_ABSENT)
            return
        reader = await Reader.open(self._settings.kafka, [KEY_STATES.name])
        try:
            bounds = {p.partition: found for p, found in (await reader.bounds(reader.assignment())).items()}
            for number, offset in self._begin(bounds).items():
                reader.seek(Partition(KEY_STATES.name, number), offset)
            while not await self._turn(reader):
                pass
        finally:
            await reader.close()

    def _begin(self, bounds: dict[int, tuple[int, int]]) -> dict[int, int]:
        """Where to read each partition from: where the copy stands, or for a second copy from the start."""
        self._ends = {number: end for number, (_, end) in bounds.items()}
        self._caught_up.clear()
        self._whole.clear()
        self._heard = time.monotonic()
        self._complaint.over()
        target = self._second or self._serving
        offsets = go_on_from(target.offsets, target.meta.cluster, self._cluster, bounds)
        if offsets is None:
            self._reload("its offsets mean nothing there")
            offsets = {number: first for number, (first, _) in bounds.items()}
        else:
            target.declare(cluster=self._cluster)
        return offsets

    def _reload(self, why: str) -> None:
        _log.warning("the replica is loaded anew beside the one that serves", reason=why)
        if self._second is not None:
            discarded, self._second = self._second, None
            discarded.discard()
        self._second = self._serving.renew()
        self._second.declare(cluster=self._cluster)

    async def _turn(self, reader: Reader) -> bool:
        """Takes what came; True when all is to be read from the start."""
        found = await reader.fetch(timeout_ms=_TURN_MS)
        if found:
            await self._still_the_same()
            self._reached()
            await self._apply(reader, found)
        elif not self.ready and time.monotonic() - self._contact > self._patience:
            await self._probe()
        return await self._compare(reader)

    async def _still_the_same(self) -> None:
        """After a silence, makes sure that it is not another cluster at the same address that speaks."""
        silence, self._heard = time.monotonic() - self._heard, time.monotonic()
        if silence > _SUSPICIOUS:
            await still_cluster(self._settings.kafka, self._cluster)

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(_PROBE_DEADLINE):
                await cluster_id(self._settings.kafka)
        except TimeoutError:
            raise KafkaUnavailable("Kafka does not answer") from None
        self._reached()

    def _reached(self) -> None:
        self._reachable = True
        self._contact = time.monotonic()

    async def _apply(self, reader: Reader, found: dict[Partition, list[Record]]) -> None:
        now_ns = boot_ns()
        batches = []
        for partition, records in found.items():
            position = await reader.position(partition)
            batch = StateBatch(
                partition.partition,
                [(record.key, record.value) for record in records],
                position,
                self._at_end(reader, partition, position) and self._is_news(partition.partition, records[-1]),
            )
            batches.append(batch)
        for copy in (self._serving, self._second):
            if copy is not None:
                copy.apply(batches, now_ns)
        if any(not (record.key or b"").startswith(b"beat-") for records in found.values() for record in records):
            self.changed()

    def _at_end(self, reader: Reader, partition: Partition, position: int) -> bool:
        return position >= max(self._ends[partition.partition], reader.end(partition))

    def _is_news(self, number: int, last: Record) -> bool:
        return number in self._caught_up or abs(time.time() - last.timestamp / 1000) < _RECENT

    async def _compare(self, reader: Reader) -> bool:
        """Holds each partition that is read to its end against its last heartbeat; True when one lacks something."""
        copy, at_least = self._second or self._serving, self._serving.meta.beats
        settled: dict[int, int] = {}
        for partition in reader.assignment():
            number = partition.partition
            if not self._at_end(reader, partition, await reader.position(partition)):
                continue
            self._caught_up.add(number)
            beat, held = copy.meta.beats[number], copy.meta.held[number]
            if beat is not None and copy.meta.generations[number] not in (None, beat.generation):
                self._reload(f"Kafka had lost records of partition {number}, which were sent again")
                return True
            if matches(beat, held, at_least[number]):
                self._whole.add(number)
                if beat is not None and copy.meta.generations[number] is None:
                    settled[number] = beat.generation
                continue
            self._whole.discard(number)
            if beat is not None and self._second is None:
                self._reload(f"partition {number} holds {held} keys and owners, its heartbeat says {beat.streams}")
                return True
        copy.settle(settled)
        self._conclude()
        return False

    def _conclude(self) -> None:
        missing = self._serving.meta.partitions - len(self._whole)
        self.problem = f"{missing} partitions do not hold what their heartbeats say" if missing else ""
        if self._second is not None and not missing:
            # Declared first: a replica that serves must never seem not to.
            self._second.declare(ready=True, complete=True)
            self._serving.swap(self._second)
            self._second = None
            _log.info("the replica loaded anew serves now", held=self.held)
        self._judge()
