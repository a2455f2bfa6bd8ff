"""A real agent process with its data directory; who writes key states, request logs and usage marks is played by the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.edge.clock import boot_ns, wall_ns
from services.edge.replica.reader import ReplicaReader
from services.edge.requestlog.format import Record as LogRecord
from services.edge.requestlog.writer import RequestLog
from shared.events import CloudEvent, EventData
from shared.events.keys import Hash, Heartbeat, KeyState, Limits, OwnerState
from shared.events.requests import UsageMark
from shared.events.topics import EDGE_STATUS, KEY_STATES, USAGE_MARKS, Topic
from shared.kafka import Message, Partition, Producer, ensure_topics
from shared.partitions import partition_for
from shared.settings import Base
from tests.support.eventually import eventually
from tests.support.service import free_port
from tests.support.topics import read_topic

PARTITIONS = 3
EDGE = "e" * 32
Event = tuple[str, EventData, int | None]


@dataclass
class World:
    """An edge without its parent: one agent over a data directory."""

    data: Path
    kafka: str
    session: str = "one"
    partitions: int = PARTITIONS
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "edge-id").write_text(EDGE)
        key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.data / "identity.pem").write_bytes(key)
        self.replica = ReplicaReader(self.data / "replica", self.session)
        self.internal_port = free_port()

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    def start(self) -> None:
        with (self.data / "agent.out").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.edge", "agent"],
                env=os.environ | self._environment(),
                stdout=output,
                stderr=output,
            )

    def restart_edge(self, session: str) -> None:
        """As when the whole edge starts anew: its processes and their session."""
        self.session = session
        self.replica.close()
        self.replica = ReplicaReader(self.data / "replica", session)
        self.start()

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self, seconds: float = 20.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def output(self) -> str:
        return (self.data / "agent.out").read_text()

    async def until_ready(self, deadline: float = 30.0) -> None:
        await eventually(lambda: self.replica.status().ready, deadline)

    async def internal(self, path: str) -> httpx2.Response:
        async with httpx2.AsyncClient() as client:
            return await client.get(f"http://127.0.0.1:{self.internal_port}{path}")

    async def figures(self) -> dict[str, float]:
        """The agent's metrics, by name and labels."""
        lines = (await self.internal("/metrics")).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def begin_log(self, **settings: Any) -> RequestLog:
        return RequestLog.open(self.logs, edge_id=EDGE, partitions=PARTITIONS, **settings)

    async def statuses(self) -> list[dict[str, Any]]:
        """All that the edge has said of itself, oldest first."""
        found = (await read_topic(self.kafka, EDGE_STATUS.name))[partition_for(EDGE.encode(), PARTITIONS)]
        return [msgspec.json.decode(record.value) for record in found if record.value]

    def _environment(self) -> dict[str, str]:
        own = {
            "DATA": str(self.data),
            "IDENTITY_KEY": str(self.data / "identity.pem"),
            "KEYS_URL": "http://127.0.0.1:1",
            "TICKETS_URL": "http://127.0.0.1:1",
            "STATS_URL": "http://127.0.0.1:1",
            "SESSION": self.session,
            "ALONE_SECONDS": "1",
            **self.settings,
        }
        common = {"KEYLEDGER_KAFKA": self.kafka, "KEYLEDGER_PARTITIONS": str(self.partitions)}
        return (
            {"KEYLEDGER_INTERNAL_PORT": str(self.internal_port)}
            | common
            | {f"KEYLEDGER_EDGE_{name}": value for name, value in own.items()}
        )


class Platform:
    """Plays the relay of the keys service and the publisher of the usage service, each with real transactions."""

    def __init__(self, kafka: str, producer: Producer) -> None:
        self.kafka = kafka
        self._producer = producer
        self.streams: dict[str, Event] = {}
        self.position = 0
        self.generation = 1
        self.epoch = 1

    @classmethod
    async def open(cls, kafka: str, *topics: Topic) -> Platform:
        await ensure_topics(Base(kafka=kafka, partitions=PARTITIONS), topics or (KEY_STATES,))
        return cls(kafka, await Producer.open(kafka, "keyledger/tests"))

    async def close(self) -> None:
        await self._producer.abandon()

    async def publish(self, *events: Event, unsaid: int = 0) -> int:
        """States in one transaction, each partition's followed by its heartbeat, which counts `unsaid` more than there
        are. Returns the position."""
        self.position += len(events)
        self.streams |= {event[0]: event for event in events}
        counts = Counter(_number(stream) for stream in self.streams)
        numbers = {_number(stream) for stream, _, _ in events} or set(range(PARTITIONS))
        beats = [self._beat(number, counts[number] + unsaid) for number in sorted(numbers)]
        await self._producer.transaction([*(self._message(*event) for event in events), *beats])
        return self.position

    async def beat(self, unsaid: int = 0) -> None:
        await self.publish(unsaid=unsaid)

    async def publish_silently(self, *events: Event) -> None:
        """States that their heartbeats know of already."""
        await self._producer.transaction([self._message(*event) for event in events])

    async def mark(self, log: str, partition: int, mark: int, **fields: Any) -> None:
        """What the usage service says it has stored of a log."""
        values: dict[str, Any] = {"gaps": (), "next_offset": 0, "closed": False, **fields}
        data = UsageMark(log=log, partition=partition, mark=mark, **values)
        key = f"{log}/{partition}"
        event = CloudEvent[EventData](
            id=key, source="keyledger/usage", type=UsageMark.TYPE, time=datetime.now(UTC), subject=key, data=data
        )
        at = Partition(USAGE_MARKS.name, _number(key))
        await self._producer.transaction([Message(at, key.encode(), event.encode())])

    def _beat(self, number: int, streams: int) -> Message:
        data = Heartbeat(partition=number, position=self.position, streams=streams, generation=self.generation)
        return self._message(f"beat-{number}", data, None, number)

    def _message(self, stream: str, data: EventData, version: int | None, number: int | None = None) -> Message:
        event = CloudEvent[EventData](
            id=f"{stream}@{version}",
            source="keyledger/keys",
            type=data.TYPE,
            time=datetime.now(UTC),
            subject=stream,
            epoch=self.epoch,
            position=self.position,
            streamversion=version,
            data=data,
        )
        at = Partition(KEY_STATES.name, _number(stream) if number is None else number)
        return Message(at, stream.encode(), event.encode())


def key(key_id: int, version: int = 1, status: Any = "active") -> Event:
    state = KeyState(
        id=key_id,
        owner_id=1,
        status=status,
        permissions=("read",),
        limits=Limits(),
        expires_at=None,
        addresses=(),
        hashes=(Hash(hash=hash_of(key_id).hex()),),
    )
    return f"key-{key_id}", state, version


def owner(owner_id: int = 1) -> Event:
    return f"owner-{owner_id}", OwnerState(id=owner_id, status="active"), 1


def hash_of(key_id: int) -> bytes:
    return key_id.to_bytes(32, "big")


def partition_of_key(key_id: int) -> int:
    return _number(f"key-{key_id}")


def request(number: int, key_id: int = 1) -> LogRecord:
    return LogRecord(
        admitted_ns=boot_ns(),
        time_ns=wall_ns(),
        key_id=key_id,
        key_version=1,
        owner_id=1,
        endpoint="/api/v1/tickets",
        route="platform",
        method="GET",
        status_code=200,
        response_time=0.015,
        decision="allowed",
        via="proxy",
        request_id=f"{number:032x}",
        correlation_id=None,
        client_address="192.0.2.1",
    )


def _number(stream: str) -> int:
    return partition_for(stream.encode(), PARTITIONS)
