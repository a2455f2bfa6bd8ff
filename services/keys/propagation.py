"""Follows `edge-status`, so that the call that changed a key can wait until the edges have applied the change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import structlog

from shared.events.topics import EDGE_STATUS
from shared.eventstore import Place
from shared.kafka import KafkaUnavailable, Partition, Reader, Record
from shared.telemetry import Check

SILENT_AFTER = 3.0
ANSWER_WITHIN = 1.0
PATIENCE = 8.0
HEADER = "Keyledger-Propagation"
_log = structlog.get_logger()


class _Data(msgspec.Struct):
    edge: str
    status: str
    applied: dict[int, int]


class _Status(msgspec.Struct):
    data: _Data
    epoch: int = 1


_decode = msgspec.json.Decoder(_Status).decode


@dataclass(frozen=True)
class Edge:
    """What an edge last said: what it has applied by partition, and when that was (monotonic seconds, by our clock).

    `place` is the partition and offset of the record that said so.
    """

    status: str
    epoch: int
    applied: dict[int, int]
    heard: float
    place: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Receipt:
    """How far a change has come: live edges, those that confirmed it, those that are silent; None without Kafka."""

    edges: int | None
    confirmed: int = 0
    silent: tuple[str, ...] = ()
    ms: int = 0

    def header(self) -> str:
        """The value of `Keyledger-Propagation`."""
        if self.edges is None:
            return "edges=unknown"
        silent = f'; silent="{" ".join(self.silent)}"' if self.silent else ""
        return f"edges={self.edges}; confirmed={self.confirmed}; ms={self.ms}{silent}"


def receipt(edges: dict[str, Edge], partition: int, place: Place, now: float, started: float) -> Receipt:
    """What is known at `now` of a change at `place`: retired edges don't count, stopped and silent ones are named."""
    counted = {name: edge for name, edge in edges.items() if edge.status != "retired"}
    silent = [name for name, e in counted.items() if e.status == "stopped" or now - e.heard > SILENT_AFTER]
    live = {name: edge for name, edge in counted.items() if name not in silent}
    confirmed = sum((edge.epoch, edge.applied.get(partition, 0)) >= place for edge in live.values())
    return Receipt(len(live), confirmed, tuple(sorted(silent)), round((now - started) * 1000))


async def _answers(reader: Reader) -> bool:
    """Whether Kafka is there, so that it is the edges that are silent."""
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            return bool(await reader.bounds(reader.assignment()))
    except TimeoutError:
        return False


class Propagation:
    """The edges' reports, followed for as long as `run` runs."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._edges: dict[str, Edge] = {}
        self._changed = asyncio.Event()
        self._connected = False
        self._patient_until = time.monotonic() + PATIENCE

    def checks(self) -> dict[str, Callable[[], Check]]:
        """For readiness: the edges' reports were read once; without Kafka not for ever, since commands work without receipts."""
        return {"edges": self._check}

    def _check(self) -> Check:
        if self._connected:
            self._patient_until = 0.0
            return Check(True, f"{len(self._edges)} known")
        return Check(time.monotonic() > self._patient_until, "edge-status is not read")

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; without Kafka or the topic, receipts say `edges=unknown`."""
        while not stop.is_set():
            try:
                await self._follow(stop)
            except KafkaUnavailable as error:
                _log.info("edge-status can't be read", error=str(error))
            self._connected = False
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)

    async def _follow(self, stop: asyncio.Event) -> None:
        reader = await Reader.open(self._bootstrap, [EDGE_STATUS.name])
        try:
            bounds = await reader.bounds(reader.assignment())
            for partition, (begin, _) in bounds.items():
                reader.seek(partition, begin)
            await self._load(reader, {partition: end for partition, (begin, end) in bounds.items() if end > begin})
            heard = time.monotonic()
            while not stop.is_set():
                silent = time.monotonic() - heard > SILENT_AFTER
                self._connected = not silent or await _answers(reader)
                self._changed.set()
                self._changed = asyncio.Event()
                for partition, records in (await reader.fetch(timeout_ms=500)).items():
                    heard = time.monotonic()
                    for record in records:
                        self._take(partition, record, heard)
        finally:
            await reader.close()

    async def _load(self, reader: Reader, ends: dict[Partition, int]) -> None:
        """What was said before we listened: how long before is told by the broker's clock alone, up to the last record.

        Neither an edge's clock nor the distance between the broker's and ours says anything of how alive an edge is.
        """
        found: list[tuple[Partition, Record]] = []
        async for fetched in reader.read_up_to(ends):
            found += [(partition, record) for partition, records in fetched.items() for record in records]
        now, last = time.monotonic(), max((record.timestamp for _, record in found), default=0)
        for partition, record in found:
            self._take(partition, record, now - (last - record.timestamp) / 1000)

    def _take(self, partition: Partition, record: Record, heard: float) -> None:
        if record.value is None:
            return
        try:
            said = _decode(record.value)
        except (msgspec.DecodeError, RecursionError):
            _log.warning("unreadable edge-status", offset=record.offset, partition=partition.partition)
            return
        held, place = self._edges.get(said.data.edge), (partition.partition, record.offset)
        if held is None or held.place != place:  # else known from an earlier connection, and when it was heard
            self._edges[said.data.edge] = Edge(said.data.status, said.epoch, said.data.applied, heard, place)

    async def wait(self, partition: int, place: Place, longest: float) -> Receipt:
        """Waits until each live edge has applied `place` in `partition`, at most `longest` seconds."""
        started = time.monotonic()
        while self._connected:
            changed = self._changed
            now = time.monotonic()
            found = receipt(self._edges, partition, place, now, started)
            if found.confirmed == found.edges or now - started >= longest:
                return found
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), max(0.001, longest - (now - started)))
        return Receipt(None)
