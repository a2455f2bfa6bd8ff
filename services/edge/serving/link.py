"""A connection of a client as such: how long it may wait, what it holds in memory, when it is read, and how it ends. What is read
from it is in `connection`.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Final

from services.edge.clock import SECOND, boot_ns
from services.edge.http.body import BodyReader
from services.edge.http.message import RequestHead
from services.edge.serving import answers
from services.edge.serving.answering import NEVER
from services.edge.serving.answers import Answer
from services.edge.serving.exchange import Exchange
from services.edge.serving.grant import Grant

if TYPE_CHECKING:
    from services.edge.serving.connections import Clients

_LINGER_NS: Final = 5 * SECOND


class State(Enum):
    """What is read from it now: a head, a body, a body that nobody wants, or nothing any more."""

    HEAD = "head"
    EXCHANGE = "exchange"
    UNWANTED = "unwanted"
    CLOSING = "closing"


# A global is looked up faster than an enumeration's member.
HEAD: Final = State.HEAD
EXCHANGE: Final = State.EXCHANGE
UNWANTED: Final = State.UNWANTED
CLOSING: Final = State.CLOSING


class Link:
    """One connection of a client, whatever is read from it. An `asyncio.Protocol` in all but name: compiled, it would be a slower
    class with that for a base.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._edge = clients.edge
        self._patience = clients.patience
        self._transport: asyncio.Transport | None = None
        self._address: str | None = None
        self._state = HEAD
        self._buffer = b""
        self._request: RequestHead | None = None
        self._reader: BodyReader | None = None
        self._exchange: Exchange | None = None
        self._grant: Grant | None = None
        self._deadline_ns = NEVER
        self._has_ns = 0
        self._counted = False
        self._held = False
        self._waits = False
        self._paused = False
        self._full = False

    def write(self, data: bytes) -> None:
        """Sends bytes of the answer."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Drops the connection: the answer can't be completed."""
        self._state = CLOSING
        if self._transport is not None:
            self._transport.abort()

    # Memory

    def count(self) -> None:
        """Tells how much waits here: of requests, and of answers that the client does not take."""
        transport, exchange = self._transport, self._exchange
        size = len(self._buffer) + (exchange.held if exchange is not None else 0)
        if self._full and transport is not None:
            size += transport.get_write_buffer_size()
        if size or self._counted:
            self._counted = size > 0
            self._clients.backlog.hold(self, size)

    def give_way(self) -> None:
        """Too much waits in memory, and this for longest."""
        self._counted = False
        if self._full:
            self.abort()
        elif self._exchange is not None and self._exchange.waiting:
            self._buffer = b""
            self._exchange.client_failed(answers.UNAVAILABLE)
        elif self._state is HEAD:
            self._refuse(answers.NOT_READY, "crowded")
        else:
            self.abort()

    # Time

    def end_overdue(self, now_ns: int, *, pressed: bool, recheck: bool) -> None:
        """Ends what has waited too long, sooner when others wait for what it holds (`pressed`: for its connection)."""
        exchange = self._exchange
        deadline_ns = self._deadline_ns
        if pressed or (exchange is not None and exchange.pressed):
            deadline_ns -= max(0, self._has_ns - self._patience.pressed)
        if now_ns >= deadline_ns:
            self._expire()
        elif exchange is not None and now_ns >= exchange.deadline_ns:
            exchange.expire()
        elif exchange is not None and recheck:
            exchange.recheck()

    @property
    def reads_head(self) -> bool:
        """Whether the head of a request, or nothing yet, is read."""
        return self._state is HEAD

    def _expire(self) -> None:
        """The answer to a client that is too slow: 408 while it can have one, or the end of the connection."""
        exchange = self._exchange
        if exchange is not None and exchange.waiting and not self._full:
            exchange.client_failed(answers.REQUEST_TIMEOUT)
            self._give(self._patience.body)
        elif self._state is HEAD and self._buffer and not self._full:
            self._refuse(answers.REQUEST_TIMEOUT, "timeout")
        elif self._state is HEAD and not self._full:
            self._close()
        else:
            self.abort()

    def _give(self, time_ns: int) -> None:
        """The client has so long from now."""
        self._has_ns = time_ns
        self._deadline_ns = boot_ns() + time_ns

    def _wait_for_body(self) -> None:
        if self._full:
            return
        if self._reader is None or self._held:
            # While we don't read, it is not the client that is slow.
            self._deadline_ns = NEVER
        else:
            self._give(self._patience.body)

    # Reading

    def _regulate(self) -> None:
        busy = self._state is EXCHANGE and (self._held or self._waits)
        pause = busy or (self._full and self._state in {HEAD, UNWANTED})
        if self._transport is None or pause is self._paused or self._transport.is_closing():
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # Ending

    def drain(self) -> None:
        """Ends the connection unless a request is under way."""
        if self._state in {HEAD, UNWANTED} and not self._buffer:
            self._close()

    def turn_away(self) -> None:
        """Ends the connection before the request that it began: another process takes it."""
        self._refuse(answers.NOT_READY, "draining")

    def _refuse(self, answer: Answer, reason: str) -> None:
        """Answers what is no request, or not in time, and ends the connection."""
        self._edge.metrics.unmetered(reason)
        request_id = self._edge.gate.new_id().encode()
        self.write(answer.encode(request_id, b"Connection: close\r\n", to_head=False))
        self._linger()

    def _close(self) -> None:
        if self._reader is not None or self._buffer:
            self._linger()
        elif self._transport is not None:
            self._state = CLOSING
            self._give(self._patience.body)
            self._transport.close()

    def _linger(self) -> None:
        """Ends our side only: closing with bytes unread would make the kernel take our answer back (RFC 9112, 9.6)."""
        self._state = CLOSING
        self._buffer = b""
        self._regulate()
        self._give(_LINGER_NS)
        if self._transport is not None:
            self._transport.write_eof()
        if self._counted:
            self.count()
