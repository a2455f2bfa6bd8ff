"""What goes wrong with Kafka, in two words: it is unavailable, or another producer has taken over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.structs import TopicPartition as Partition

DEADLINE = 30.0


class KafkaUnavailable(Exception):  # noqa: N818 - a state, not a mistake
    """Kafka did not answer in time, or answered with an error; the client that saw it is of no further use."""


class Fenced(KafkaUnavailable):
    """Another producer has taken the transactional id: this process is a zombie."""


class OutOfRange(KafkaUnavailable):
    """Positions outside of the log: what was there has expired, or the broker lost its tail."""

    def __init__(self, partitions: Iterable[Partition]) -> None:
        self.partitions = frozenset(partitions)
        super().__init__(f"out of range: {sorted(self.partitions)}")


@asynccontextmanager
async def guarded(what: str, deadline: float = DEADLINE) -> AsyncIterator[None]:
    """Ends what takes longer than `deadline` (s); every error of the client comes out as `KafkaUnavailable`."""
    try:
        async with asyncio.timeout(deadline):
            yield
    except ProducerFenced as error:
        raise Fenced(f"{what}: fenced") from error
    except (KafkaError, OSError, TimeoutError, AssertionError) as error:
        raise KafkaUnavailable(f"{what}: {type(error).__name__} {error}") from error
