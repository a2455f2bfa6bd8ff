"""Connections to one upstream, kept alive and used again. There are at most so many; more requests wait their turn."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from urllib.parse import urlsplit

from services.edge.clock import SECOND, boot_ns
from services.edge.upstream.connection import Caller, Failure, UpstreamConnection


class Upstream:
    """One origin and the connections to it. `origin` is scheme://host[:port]."""

    def __init__(self, origin: str, *, connections_max: int, connect_seconds: float, idle_seconds: float) -> None:
        parts = urlsplit(origin)
        secure = parts.scheme == "https"
        self.origin = origin
        self.authority = parts.netloc.encode()
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if secure else 80)
        self._ssl = ssl.create_default_context() if secure else None
        self._connections_max = connections_max
        self._connect_seconds = connect_seconds
        self._idle_ns = int(idle_seconds * SECOND)
        self._idle: list[UpstreamConnection] = []
        self._open = 0
        self._swept_ns = boot_ns()
        self._waiting: deque[Caller] = deque()
        self._outgoing: list[tuple[UpstreamConnection, bytes]] = []
        self._connecting: set[asyncio.Task[None]] = set()

    def acquire(self, caller: Caller, *, fresh: bool = False) -> None:
        """Tells `caller` of a connection, at once or later; `fresh` not of one that was used before."""
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable:
                connection.reused = True
                connection.use(caller)
                return
        if self._open < self._connections_max:
            self._connect(caller)
        else:
            self._waiting.append(caller)

    def release(self, connection: UpstreamConnection) -> None:
        """Takes a connection back whose exchange is complete."""
        if not connection.usable:
            return
        caller = self._next() if self._waiting else None
        if caller is not None:
            connection.reused = True
            connection.use(caller)
            return
        # Reckoned from the last sweep: rather closed too early than used when the upstream is closing it.
        connection.idle_until_ns = self._swept_ns + self._idle_ns
        self._idle.append(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """Forgets a connection that is gone."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._freed()

    def send(self, connection: UpstreamConnection, data: bytes) -> None:
        """Sends what one turn of the event loop has for the upstream in one go: to wake it for each costs more than to send."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._send)
        self._outgoing.append((connection, data))

    def sweep(self, now_ns: int) -> None:
        """Closes what was unused for too long."""
        self._swept_ns = now_ns
        due = [connection for connection in self._idle if connection.idle_until_ns <= now_ns]
        for connection in due:
            self._idle.remove(connection)
            connection.abort()

    def close(self) -> None:
        """Closes all that is not in use."""
        for task in self._connecting:
            task.cancel()
        for connection in tuple(self._idle):
            connection.abort()

    def _send(self) -> None:
        outgoing = self._outgoing
        self._outgoing = []
        for connection, data in outgoing:
            connection.put(data)

    def _next(self) -> Caller | None:
        while self._waiting:
            caller = self._waiting.popleft()
            if caller.waiting:
                return caller
        return None

    def _freed(self) -> None:
        self._open -= 1
        caller = self._next()
        if caller is not None:
            self._connect(caller)

    def _connect(self, caller: Caller) -> None:
        self._open += 1
        task = asyncio.get_running_loop().create_task(self._connected(caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connected(self, caller: Caller) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self), self._host, self._port, ssl=self._ssl
                )
        except TimeoutError:
            self._unreachable(caller, Failure.timeout, "no connection in time")
        except OSError as error:
            self._unreachable(caller, Failure.unreachable, str(error))
        else:
            if caller.waiting:
                connection.use(caller)
            else:
                self.release(connection)

    def _unreachable(self, caller: Caller, failure: Failure, reason: str) -> None:
        self._freed()
        if caller.waiting:
            caller.upstream_failed(failure, reason)
