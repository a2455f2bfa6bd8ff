"""The bare proxy that the edge is compared with: uvloop, httptools on both sides, and nothing else.

It parses requests and responses, writes heads anew and keeps connections alive, but judges, limits, counts and logs
nothing, has no deadline, and trusts both sides to send bodies only with a length. Run as
`python -m tests.load.proxies.bare PORT UPSTREAM_PORT`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import uvloop
from typing_extensions import override

from shared.process import spare_collector


class Server(asyncio.Protocol):
    """A connection of a client."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpRequestParser(self)
        self._fields: list[bytes] = []
        self._url = b""
        self._body = b""
        self.transport: Any = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append(b"%b: %b\r\n" % (name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        head = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (
            self._parser.get_method(),
            self._url,
            b"".join(self._fields),
            self._body,
        )
        self._url, self._body, self._fields = b"", b"", []
        self._pool.send(self, head)

    def answer(self, data: bytes) -> None:
        """The whole response."""
        if not self.transport.is_closing():
            self.transport.write(data)


class Client(asyncio.Protocol):
    """A connection to the upstream."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[bytes] = []
        self._body = b""
        self.caller: Server | None = None
        self.transport: Any = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        if self.caller is not None:
            self.caller.transport.abort()

    @override
    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append(b"%b: %b\r\n" % (name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        data = b"HTTP/1.1 %d OK\r\n%b\r\n%b" % (self._parser.get_status_code(), b"".join(self._fields), self._body)
        self._fields, self._body = [], b""
        caller, self.caller = self.caller, None
        self._pool.release(self)
        if caller is not None:
            caller.answer(data)


class Pool:
    """Connections to the upstream, as many as there are requests at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Client] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, caller: Server, data: bytes) -> None:
        """Sends a request on an idle connection, or on a new one."""
        if self._idle:
            client = self._idle.pop()
            client.caller = caller
            client.transport.write(data)
        else:
            task = asyncio.get_running_loop().create_task(self._connect(caller, data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def release(self, client: Client) -> None:
        """Takes a connection back."""
        self._idle.append(client)

    def lost(self, client: Client) -> None:
        """Forgets a connection that is gone."""
        if client in self._idle:
            self._idle.remove(client)

    async def _connect(self, caller: Server, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(self), "127.0.0.1", self._port)
        client.caller = caller
        client.transport.write(data)


async def main(port: int, upstream: int) -> None:
    """Serves until the process is ended."""
    pool = Pool(upstream)
    server = await asyncio.get_running_loop().create_server(lambda: Server(pool), "127.0.0.1", port, backlog=1024)
    spare_collector()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
