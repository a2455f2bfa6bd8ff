"""All connections of clients, and what ends them: their deadlines, and the drain."""

from __future__ import annotations

import asyncio

from services.edge.clock import SECOND, boot_ns
from services.edge.serving.connection import ClientConnection
from services.edge.serving.exchange import Edge


class Clients:
    """The connections of a serving process's clients.

    `drained` is set when the drain has begun and no connection is left.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.draining = False
        self.drained = asyncio.Event()
        self._open: set[ClientConnection] = set()
        self._rechecked_ns = boot_ns()

    def connection(self) -> ClientConnection:
        """A new connection's protocol."""
        return ClientConnection(self)

    def crowded(self) -> bool:
        """Whether there are more connections than may be."""
        return len(self._open) > self.edge.settings.connections_max

    def add(self, connection: ClientConnection) -> None:
        """Takes care of a connection."""
        self._open.add(connection)
        self.edge.metrics.connections = len(self._open)

    def discard(self, connection: ClientConnection) -> None:
        """Forgets a connection that is gone."""
        self._open.discard(connection)
        if self.draining and not self._open:
            self.drained.set()
        self.edge.metrics.connections = len(self._open)

    def sweep(self, now_ns: int) -> None:
        """Ends what has waited too long; every second also what streams to keys that are refused by now."""
        recheck = now_ns - self._rechecked_ns >= SECOND
        if recheck:
            self._rechecked_ns = now_ns
        for connection in tuple(self._open):
            connection.sweep(now_ns, recheck=recheck)

    def drain(self) -> None:
        """Lets the exchanges under way end, and with each its connection."""
        self.draining = True
        for connection in tuple(self._open):
            connection.drain()
        if not self._open:
            self.drained.set()

    def abort(self) -> None:
        """Drops all that is left."""
        for connection in tuple(self._open):
            connection.abort()
