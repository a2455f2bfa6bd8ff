"""An upstream for tests: a plain HTTP/1.1 server that notes what it was sent and misbehaves on request. Its parser is not
the edge's, so what the two make of the same bytes can be compared.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field


@dataclass
class Seen:
    """One request as the upstream understood it. `connection` counts connections, from 1."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    connection: int
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]


Behaviour = Callable[[Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Upstream:
    """Runs in a thread of its own. `behaviours` is by path; all else is echoed as JSON. `host` is this machine as the edge
    knows it; under another name than loopback's it is reached from elsewhere."""

    seen: list[Seen] = field(default_factory=list)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    connections: int = 0
    port: int = 0
    host: str = "127.0.0.1"

    def start(self) -> None:
        started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)), daemon=True)
        self._thread.start()
        started.result(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def call(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)

    @property
    def origin(self) -> str:
        return f"http://{self.host}:{self.port}"

    def of(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.target.partition("?")[0] == path]

    async def _main(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        server = await asyncio.start_server(
            self._serve, "127.0.0.1" if self.host == "127.0.0.1" else "0.0.0.0", self.port, limit=1 << 20
        )
        self.port = server.sockets[0].getsockname()[1]
        started.set_result(None)
        await self._over.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while await self._one(number, reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.split("\r\n")[:-2]
        method, target, _ = line.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        seen = Seen(method, target, headers, number)
        behaviour = self.behaviours.get(target.partition("?")[0])
        if behaviour is not None:
            self.seen.append(seen)
            await behaviour(seen, reader, writer)
            await writer.drain()
            return not writer.is_closing()
        seen.body = await read_body(seen, reader)
        self.seen.append(seen)
        answer = json.dumps({"method": method, "target": target, "headers": headers, "length": len(seen.body)}).encode()
        head_only = method == "HEAD"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer))
        writer.write(b"" if head_only else answer)
        await writer.drain()
        return True


async def read_body(seen: Seen, reader: asyncio.StreamReader) -> bytes:
    if seen.values("transfer-encoding") == ["chunked"]:
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        while (await reader.readuntil(b"\r\n")) != b"\r\n":
            pass
        return body
    return await reader.readexactly(int((seen.values("content-length") or ["0"])[0]))


def plain(data: bytes) -> Behaviour:
    """Reads the request's body and sends exactly these bytes."""

    async def behave(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.body = await read_body(seen, reader)
        writer.write(data)

    return behave


def then_close(data: bytes) -> Behaviour:
    """Sends exactly these bytes and closes."""

    async def behave(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await plain(data)(seen, reader, writer)
        await writer.drain()
        writer.close()

    return behave
