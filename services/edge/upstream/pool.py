"""Connections to one upstream, kept alive and used again. There are at most so many; more requests wait their turn, and
those whose client has yet to send them let the others go first.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from typing import cast
from urllib.parse import urlsplit

from services.edge.clock import SECOND, boot_ns
from services.edge.upstream.connection import Caller, Failure, UpstreamConnection


class Pool:
    """One origin's connections. `origin` is scheme://host[:port]."""

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
        self._open: set[UpstreamConnection] = set()
        self._looked_ns = boot_ns()
        self._ready: OrderedDict[Caller, None] = OrderedDict()
        self._slow: OrderedDict[Caller, None] = OrderedDict()
        self._outgoing: list[tuple[UpstreamConnection, bytes]] = []
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> int:
        """How many connections there are, with those in the making."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection."""
        return len(self._ready) + len(self._slow)

    @property
    def short(self) -> bool:
        """Whether a request that is ready finds no connection."""
        return bool(self._ready)

    def acquire(self, caller: Caller, *, fresh: bool = False) -> None:
        """Tells `caller` of a connection, at once or later; `fresh` not of one that was used before."""
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable:
                connection.use(caller)
                return
        if len(self._open) < self._connections_max:
            self._connect(caller)
        else:
            (self._ready if caller.ready else self._slow)[caller] = None

    def hurry(self, caller: Caller) -> None:
        """A caller that waits has become ready."""
        if caller in self._slow:
            del self._slow[caller]
            self._ready[caller] = None

    def leave(self, caller: Caller) -> None:
        """A caller waits no more."""
        self._ready.pop(caller, None)
        self._slow.pop(caller, None)

    def release(self, connection: UpstreamConnection) -> None:
        """Takes a connection back whose exchange is complete."""
        if not connection.usable:
            return
        if self._ready or self._slow:
            connection.use(self._next())
            return
        # Reckoned from the last look: rather closed too early than used when the upstream is closing it.
        connection.idle_until_ns = self._looked_ns + self._idle_ns
        self._idle.append(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """Forgets a connection that is gone, or could not be made: its place is free, once."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._ready or self._slow:
            self._connect(self._next())

    def send(self, connection: UpstreamConnection, data: bytes) -> None:
        """Sends what one turn of the event loop has for the upstream in one go: to wake it for each costs more than to send."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._send)
        self._outgoing.append((connection, data))

    def close_idle(self, now_ns: int) -> None:
        """Closes what was unused for too long."""
        self._looked_ns = now_ns
        for connection in [each for each in self._idle if each.idle_until_ns <= now_ns]:
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

    def _next(self) -> Caller:
        return (self._ready or self._slow).popitem(last=False)[0]

    def _connect(self, caller: Caller) -> None:
        connection = UpstreamConnection(self)
        self._open.add(connection)
        task = asyncio.get_running_loop().create_task(self._make(connection, caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _make(self, connection: UpstreamConnection, caller: Caller) -> None:
        failed = await self._attempt(connection)
        if failed is not None:
            connection.abort()
            if caller.waiting:
                caller.upstream_failed(*failed)
        elif caller.waiting:
            connection.use(caller)
        else:
            self.release(connection)

    async def _attempt(self, connection: UpstreamConnection) -> tuple[Failure, str] | None:
        loop = asyncio.get_running_loop()
        protocol = cast(asyncio.Protocol, connection)
        try:
            async with asyncio.timeout(self._connect_seconds):
                await loop.create_connection(lambda: protocol, self._host, self._port, ssl=self._ssl)
        except TimeoutError:
            return Failure.timeout, "no connection in time"
        except Exception as error:
            return Failure.unreachable, str(error) or type(error).__name__
        return None if connection.usable else (Failure.lost, "the connection ended before its use")
