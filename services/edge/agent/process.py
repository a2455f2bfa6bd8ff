"""The edge's agent: one process beside the serving ones that talks to Kafka for them. It follows the key states into the
replica, ships the request logs, deletes what is stored of them, and tells the keys service what this edge has applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import lmdb
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from services.edge.agent.complaint import Complaint
from services.edge.agent.follower import Follower
from services.edge.agent.marks import MarkReader
from services.edge.agent.retention import Retention
from services.edge.agent.shipper import Shipper, first_of
from services.edge.agent.snapshots import Snapshots
from services.edge.agent.status import StatusPublisher
from services.edge.replica.writer import ReplicaWriter
from services.edge.settings import EdgeSettings
from shared.process import spare_collector, until_signalled
from shared.settings import PartitionsChanged
from shared.telemetry import Check, Checks

_DRAIN = 5.0
_AGAIN = 1.0


async def run(settings: EdgeSettings) -> None:
    """Until SIGTERM; then what is in the logs is shipped, for 5 s at most, and the edge says that it has stopped.

    Raises `PartitionsChanged` when a topic or the replica has another number of partitions than the settings say.
    """
    try:
        agent = Agent(settings)
        REGISTRY.register(Figures(agent))
        spare_collector()
        await until_signalled(settings.internal, agent.checks(), agent.run)
    except BaseExceptionGroup as group:
        raise (contradiction(group) or group) from None


def contradiction(group: BaseExceptionGroup[BaseException]) -> PartitionsChanged | None:
    """What a part found to contradict the settings, which no restart will mend; None: it ended for another reason."""
    found, _ = group.split(PartitionsChanged)
    error = first_of(found) if found else None
    return error if isinstance(error, PartitionsChanged) else None


class Agent:
    """The agent's parts, and how they stand."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._complaint = Complaint("the replica can't be opened")
        self.follower: Follower | None = None
        self.status: StatusPublisher | None = None
        self.shipper = Shipper(settings, settings.logs_path)
        self.marks = MarkReader(settings, settings.logs_path, self.shipper)
        self.snapshots = Snapshots(settings.logs_path)
        self.retention = Retention(
            self.shipper,
            self.snapshots,
            settings.logs_path,
            keep=settings.keep_seconds,
            budget=settings.disk_budget,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """All parts side by side; a part that fails ends the process, and its parent starts it anew."""
        parts = (self.shipper, self.marks, self.snapshots, self.retention)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part.run()) for part in parts]
                tasks.append(group.create_task(self._follow()))
                await stop.wait()
                # While the serving processes end, their replica is still followed.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.shipper.drained(), _DRAIN)
                for task in tasks:
                    task.cancel()
            if self.status is not None:
                await self.status.farewell()
        finally:
            if self.status is not None:
                await self.status.close()

    async def _follow(self) -> None:
        """Follows the key states as soon as the replica can be opened. What is shipped until then makes room on a full disk."""
        settings = self._settings
        replica = await self._open()
        try:
            self.follower = Follower(settings, replica, settings.alone_seconds)
            self.status = StatusPublisher(settings, settings.edge_id(), self.follower)
            self.follower.changed = self.status.wake
            async with asyncio.TaskGroup() as group:
                group.create_task(self.follower.run())
                group.create_task(self.status.run())
        finally:
            replica.close()

    async def _open(self) -> ReplicaWriter:
        settings = self._settings
        while True:
            try:
                return ReplicaWriter.open(
                    settings.replica_path, partitions=settings.partitions, session=settings.session
                )
            except (lmdb.Error, OSError) as error:
                self._complaint.tell(error)
                await asyncio.sleep(_AGAIN)

    def checks(self) -> Checks:
        """The edge is ready with its replica: without Kafka it goes on with what it has."""
        return {
            "replica": self._replica,
            "shipping": lambda: Check(True, "connected" if self.shipper.connected else "no connection to Kafka"),
            "marks": lambda: Check(True, self.marks.problem or "followed"),
        }

    def _replica(self) -> Check:
        follower = self.follower
        if follower is None:
            return Check(False, "the replica can't be opened yet")
        return Check(follower.ready, follower.problem or f"{follower.held} held")


class Figures(Collector):
    """The agent's figures, read when they are asked for."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    @override
    def collect(self) -> Iterable[Metric]:
        """The families, for the registry."""
        yield from self._replica()
        yield from self._logs()

    def _replica(self) -> Iterable[Metric]:
        follower, status = self._agent.follower, self._agent.status
        yield _gauge("replica_ready", "1 while the replica may be read", follower is not None and follower.ready)
        if follower is None or status is None:
            return
        yield _gauge(
            "replica_reloading", "1 while a second copy is loaded, the first not being whole", follower.reloading
        )
        yield _gauge("replica_held", "Keys and owners in the replica", follower.held)
        age = follower.freshness
        yield _gauge(
            "replica_age_seconds", "Age of the oldest partition's heartbeat", float("inf") if age is None else age
        )
        applied = GaugeMetricFamily("keyledger_edge_applied_position", "Position applied", labels=["partition"])
        for partition, position in follower.applied[1].items():
            applied.add_metric([str(partition)], position)
        yield applied
        yield _counter("malformed_states", "Records of key states that made no sense", follower.malformed)
        yield _counter("status_sent", "Records sent to edge-status", status.sent)

    def _logs(self) -> Iterable[Metric]:
        shipper, retention = self._agent.shipper, self._agent.retention
        tails = shipper.tails.values()
        yield _counter("shipped", "Records that Kafka acknowledged", shipper.shipped)
        yield _gauge("unacknowledged", "Records read from the logs and not acknowledged by Kafka", shipper.waiting)
        yield _gauge("unread_bytes", "Bytes of the logs that were not read yet", sum(tail.unread for tail in tails))
        yield _gauge("oldest_unshipped_seconds", "Age of the oldest unacknowledged record", shipper.oldest_seconds)
        yield _gauge("request_logs", "Request logs on disk", shipper.logs)
        yield _gauge("unreadable_logs", "Request logs that can't be shipped", shipper.unreadable)
        yield _gauge("damaged_records", "Damaged places in the logs on disk", sum(tail.damaged for tail in tails))
        yield _counter("shipped_again", "Times that a log was begun again", shipper.again)
        yield _counter("deleted_segments", "Segments deleted", retention.deleted)
        yield _counter("deleted_unstored_segments", "Of those: not stored yet by the usage service", retention.unstored)
        yield _gauge("request_logs_bytes", "Bytes that the request logs take", retention.taken.used)
        yield _gauge("request_logs_room_bytes", "Bytes that the request logs may take", retention.taken.limit)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"keyledger_edge_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"keyledger_edge_{name}", text, value=value)
