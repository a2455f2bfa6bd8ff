"""All connections of clients, and what ends them: their deadlines, too many of them, and the drain."""

from __future__ import annotations

import asyncio
from typing import cast

from typing_extensions import override

from services.edge.clock import SECOND, boot_ns
from services.edge.descriptors import BACKLOG
from services.edge.serving.backlog import Backlog
from services.edge.serving.connection import ClientConnection
from services.edge.serving.edge import Edge
from services.edge.serving.patience import Patience


class Clients:
    """The connections of a serving process's clients, and what they share.

    `drained` is set when the drain has begun and no connection is left.
    """

    def __init__(self, edge: Edge, spare: int = BACKLOG) -> None:
        self.edge = edge
        self.patience = Patience.of(edge.settings)
        self.backlog = Backlog(edge.settings.held_max)
        self.draining = False
        self.drained = asyncio.Event()
        self._max = edge.settings.connections_max
        self._spare = spare
        # In the order in which they came: who ends whom must not hang on chance.
        self._open: dict[ClientConnection, None] = {}
        self._rechecked_ns = boot_ns()

    def accepted(self) -> asyncio.BaseProtocol:
        """The protocol of a connection that came. Those beyond the spare ones are dropped: to be told so takes a file."""
        return cast(asyncio.BaseProtocol, self.connection()) if len(self._open) <= self._max + self._spare else Shed()

    def connection(self) -> ClientConnection:
        """A new connection's protocol."""
        return ClientConnection(self)

    def crowded(self) -> bool:
        """Whether there are more connections than may be, or none is to be any more."""
        return len(self._open) > self._max or self.draining

    def add(self, connection: ClientConnection) -> None:
        """Takes care of a connection."""
        self._open[connection] = None
        self.edge.metrics.connections = len(self._open)

    def discard(self, connection: ClientConnection) -> None:
        """Forgets a connection that is gone."""
        self._open.pop(connection, None)
        if self.draining and not self._open:
            self.drained.set()
        self.edge.metrics.connections = len(self._open)

    def end_overdue(self, now_ns: int) -> None:
        """Ends what has waited too long; every second also what is under way for keys that are refused by now."""
        recheck = now_ns - self._rechecked_ns >= SECOND
        if recheck:
            self._rechecked_ns = now_ns
        # An eighth is kept free for those who come, at the cost of those who do nothing.
        pressed = len(self._open) * 8 >= self._max * 7
        for connection in tuple(self._open):
            connection.end_overdue(now_ns, pressed=pressed, recheck=recheck)

    def drain(self) -> None:
        """Lets the exchanges under way end, and with each its connection."""
        self.draining = True
        for connection in tuple(self._open):
            connection.drain()
        if not self._open:
            self.drained.set()

    def admitting(self) -> bool:
        """Whether a request may still be admitted: one whose head has begun to come."""
        return any(connection.reads_head for connection in self._open)

    def turn_away(self) -> None:
        """Admits nothing any more: who has not sent its request's head by now is told to send it elsewhere."""
        for connection in tuple(self._open):
            if connection.reads_head:
                connection.turn_away()

    def abort(self) -> None:
        """Drops all that is left."""
        for connection in tuple(self._open):
            connection.abort()


class Shed(asyncio.Protocol):
    """A connection that is too many even to be answered."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        cast(asyncio.Transport, transport).abort()
