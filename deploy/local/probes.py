"""Asks a part of the stack whether it is ready: one small question each, in the part's own protocol, without a password."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

PROBE_SECONDS = 2.0
"""A part that has not answered within this time counts as not ready."""

_KAFKA_METADATA = 3
_KAFKA_METADATA_VERSION = 4
_POSTGRES_PROTOCOL = 3 << 16


@dataclass(frozen=True)
class Health:
    """What a part said of itself: ready or not, why not, and the processes below it (the edge's children)."""

    ready: bool
    detail: str = ""
    processes: list[dict[str, Any]] = field(default_factory=list)


Probe = Callable[[], Awaitable[Health]]


async def check(probe: Probe) -> Health:
    """The probe's answer; no answer, or none in time, is an answer too."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await probe()
    except TimeoutError:
        return Health(False, f"no answer within {PROBE_SECONDS:g} s")
    except (OSError, EOFError, ValueError, IndexError, struct.error) as error:
        return Health(False, f"{type(error).__name__}: {error}")


def http(port: int) -> Probe:
    """Probe of a Keyledger process: GET /readyz on its internal port on this machine.

    In HTTP/1.0, whose answer ends with the connection: a dozen of these run each second for ever, beside what they watch.
    """

    async def probe() -> Health:
        async with _connected(port) as (reader, writer):
            writer.write(b"GET /readyz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return _health(head.split(b" ", 2)[1] == b"200", json.loads(body))

    return probe


def _health(ok: bool, body: dict[str, Any]) -> Health:
    failing = [
        f"{name}: {each.get('detail', '')}" for name, each in body.get("checks", {}).items() if not each["ready"]
    ]
    return Health(ok and bool(body.get("ready")), "; ".join(failing), body.get("processes", []))


def postgres(port: int) -> Probe:
    """Probe of PostgreSQL, as pg_isready does it: it is ready when it answers a start-up message by asking for a password."""
    parameters = b"user\0postgres\0database\0postgres\0\0"
    message = struct.pack(">ii", 8 + len(parameters), _POSTGRES_PROTOCOL) + parameters

    async def probe() -> Health:
        async with _connected(port) as (reader, writer):
            writer.write(message)
            answer = await reader.readexactly(1)
            return Health(answer == b"R", "" if answer == b"R" else "starting up or shutting down")

    return probe


def kafka(port: int) -> Probe:
    """Probe of Kafka: ready when the cluster's metadata names a broker, which it does once the broker may lead partitions."""
    no_topics = struct.pack(">i?", 0, False)
    request = struct.pack(">hhih", _KAFKA_METADATA, _KAFKA_METADATA_VERSION, 0, -1) + no_topics

    async def probe() -> Health:
        async with _connected(port) as (reader, writer):
            writer.write(struct.pack(">i", len(request)) + request)
            await reader.readexactly(4)
            _, _, brokers = struct.unpack(">iii", await reader.readexactly(12))
            return Health(brokers > 0, "" if brokers else "no broker is registered yet")

    return probe


@contextlib.asynccontextmanager
async def _connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
