"""What a relay publishes, and how its records look: events from the log, states and heartbeats for the compacted topic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared.events import EventData, encode
from shared.events.keys import Heartbeat
from shared.events.topics import Topic
from shared.eventstore import StoredEvent
from shared.kafka import Message, Partition
from shared.partitions import partition_for
from shared.postgres import Connection


@dataclass(frozen=True)
class State:
    """A stream's whole state after its `version`, for the compacted topic."""

    stream: str
    version: int
    data: EventData


StatesOf = Callable[[Connection, Sequence[str]], Awaitable[list[State]]]


@dataclass(frozen=True)
class Publication:
    """What a service publishes: its log to `topic`, and, if it has them, its streams' states to `states_topic`.

    Events of the types in `final` end a stream: its state is deleted from the topic when it is older than `keep`.
    """

    source: str
    topic: Topic
    states_topic: Topic | None = None
    states_of: StatesOf | None = None
    final: frozenset[str] = frozenset()
    keep: timedelta = timedelta(days=30)

    @property
    def topics(self) -> list[Topic]:
        """The topics that this relay writes, and therefore makes."""
        return [self.topic, *([self.states_topic] if self.states_topic else [])]


class Messages:
    """Makes a publication's records, all of one epoch of its log."""

    def __init__(self, publication: Publication, partitions: int, epoch: int) -> None:
        self._what = publication
        self._partitions = partitions
        self._epoch = epoch

    def number(self, stream: str) -> int:
        """The partition of everything about a stream."""
        return partition_for(stream.encode(), self._partitions)

    def event(self, event: StoredEvent) -> Message:
        """An event of the log as others see it: without its private part."""
        value = encode(
            event.type,
            event.schema_version,
            event.data,
            id=str(event.event_id),
            source=self._what.source,
            time=event.recorded_at.astimezone(UTC),
            subject=event.stream,
            epoch=self._epoch,
            position=event.position,
            streamversion=event.version,
            **{name.replace("_", ""): value for name, value in event.meta.items()},
        )
        partition = Partition(self._what.topic.name, self.number(event.stream))
        return Message(partition, event.stream.encode(), value)

    def state(self, state: State) -> Message:
        """A stream's state, which takes the place of the one before it."""
        return self._of_states(
            self.number(state.stream),
            state.stream,
            state.data,
            id=f"{state.stream}@{self._epoch}.{state.version}",
            streamversion=state.version,
        )

    def deletion(self, stream: str) -> Message:
        """Takes a stream's state out of the topic, as compaction understands it."""
        assert self._what.states_topic is not None
        return Message(Partition(self._what.states_topic.name, self.number(stream)), stream.encode(), None)

    def beat(self, number: int, position: int, streams: int, generation: int) -> Message:
        """The heartbeat of a partition that is complete up to `position` and holds the states of `streams` streams."""
        return self._of_states(
            number,
            f"beat-{number}",
            Heartbeat(partition=number, position=position, streams=streams, generation=generation),
            id=f"beat-{number}@{self._epoch}.{position}",
            position=position,
        )

    def _of_states(
        self,
        number: int,
        key: str,
        data: EventData,
        *,
        id: str,  # noqa: A002 - an attribute's name
        streamversion: int | None = None,
        position: int | None = None,
    ) -> Message:
        value = encode(
            data.TYPE,
            data.SCHEMA_VERSION,
            data.model_dump(mode="json"),
            id=id,
            source=self._what.source,
            time=datetime.now(UTC),
            subject=key,
            epoch=self._epoch,
            streamversion=streamversion,
            position=position,
        )
        assert self._what.states_topic is not None
        return Message(Partition(self._what.states_topic.name, number), key.encode(), value)
