"""Connections to upstreams: kept alive and used again, one exchange at a time, their responses read as strictly as
requests are. A connection on which anything went wrong is not used again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Protocol, cast
from urllib.parse import urlsplit

import structlog
from typing_extensions import override

from services.edge.clock import SECOND, boot_ns
from services.edge.framing import BodyReader, EndReader, response_reader
from services.edge.http1 import HEAD_END, RESPONSE_HEAD_MAX, BadMessage, ResponseHead, check_lines, parse_response

_INTERIM_MAX = 16
_log = structlog.get_logger()


class Caller(Protocol):
    """Who uses a connection. It is told of the response in this order: head, body pieces, end; or of the failure."""

    method: str
    request_done: bool

    @property
    def waiting(self) -> bool:
        """Whether a connection is still of use."""

    def upstream_ready(self, connection: UpstreamConnection) -> None:
        """The connection is the caller's until the response's end."""

    def upstream_failed(self, reason: str, *, timed_out: bool = False) -> None:
        """There is no connection to be had, or what came is no response."""

    def upstream_lost(self) -> None:
        """The connection ended before the response did."""

    def upstream_full(self, *, full: bool) -> None:
        """The upstream takes no more for now (`full`), or again."""

    def response_head(self, head: ResponseHead) -> None:
        """The final response begins."""

    def response_body(self, data: bytes) -> None:
        """A piece of its body."""

    def response_end(self) -> None:
        """It is complete; the connection is no longer the caller's."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.caller: Caller | None = None
        self.reused = False
        self.idle_until_ns = 0
        self._upstream = upstream
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._reader: BodyReader | None = None
        self._keep_alive = False
        self._interim = 0
        self._held = False

    @property
    def usable(self) -> bool:
        """Whether it is open as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    def use(self, caller: Caller) -> None:
        """Gives the connection to `caller`."""
        self.caller = caller
        self._interim = 0
        caller.upstream_ready(self)

    def write(self, data: bytes) -> None:
        """Sends bytes of the request."""
        if self._transport is not None:
            self._transport.write(data)

    def hold(self, *, hold: bool) -> None:
        """Stops reading the response, or goes on."""
        if self._transport is None or self._transport.is_closing() or hold is self._held:
            return
        self._held = hold
        if hold:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drops the connection; its caller hears no more of it."""
        self.caller = None
        if self._transport is not None:
            self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection stands."""
        self._transport = cast(asyncio.Transport, transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._transport = None
        self._upstream.lost(self)
        caller, self.caller = self.caller, None
        if caller is None:
            return
        if isinstance(self._reader, EndReader) and exc is None:
            caller.response_end()
        else:
            caller.upstream_lost()

    @override
    def pause_writing(self) -> None:
        """asyncio: too much waits to be sent."""
        if self.caller is not None:
            self.caller.upstream_full(full=True)

    @override
    def resume_writing(self) -> None:
        """asyncio: enough has been sent."""
        if self.caller is not None:
            self.caller.upstream_full(full=False)

    @override
    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of a response."""
        try:
            self._received(data)
        except BadMessage as error:
            self._failed(str(error))
        except Exception:
            _log.exception("a response could not be handled", upstream=self._upstream.origin)
            self._failed("internal")

    def _received(self, data: bytes) -> None:
        while data:
            if self.caller is None:
                # Nobody asked for it: the connection is out of step.
                self.abort()
                return
            data = self._head(data) if self._reader is None else self._body(self._reader, data)

    def _head(self, data: bytes) -> bytes:
        """Takes the head at the beginning of `data`, if all of it is there, and returns what follows."""
        start = len(self._buffer)
        data = self._buffer + data if self._buffer else data
        end = data.find(HEAD_END, max(0, start - 3))
        if end > RESPONSE_HEAD_MAX or (end < 0 and len(data) > RESPONSE_HEAD_MAX):
            raise BadMessage("The response head is too large")
        if end < 0:
            check_lines(data, max(0, start - 1))
            self._buffer = data
            return b""
        self._buffer = b""
        caller = cast(Caller, self.caller)
        head = parse_response(data[: end + 4], caller.method)
        if head.status == 101 or (head.status < 200 and self._interim == _INTERIM_MAX):
            raise BadMessage("The interim responses are unexpected")
        if head.status < 200:
            self._interim += 1
        else:
            self._begin(caller, head, data[end + 4 :])
        return data[end + 4 :]

    def _begin(self, caller: Caller, head: ResponseHead, rest: bytes) -> None:
        self._keep_alive = head.keep_alive
        reader = self._reader = response_reader(head.framing, bodiless=head.bodiless)
        caller.response_head(head)
        if reader.done:
            self._end(rest)

    def _body(self, reader: BodyReader, data: bytes) -> bytes:
        body, rest = reader.feed(data)
        if body and self.caller is not None:
            self.caller.response_body(body)
        if reader.done:
            self._end(rest)
        return rest

    def _end(self, rest: bytes) -> None:
        caller, self.caller = self.caller, None
        self._reader = None
        if caller is None:
            return
        if self._keep_alive and caller.request_done and not rest:
            self.hold(hold=False)
            self._upstream.release(self)
        else:
            self.abort()
        caller.response_end()

    def _failed(self, reason: str) -> None:
        caller = self.caller
        begun = self._reader is not None
        self.abort()
        if caller is None:
            return
        if begun:
            caller.upstream_lost()
        else:
            caller.upstream_failed(reason)


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
        self._waiting: deque[Caller] = deque()
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
        caller = self._next()
        if caller is not None:
            connection.reused = True
            connection.use(caller)
            return
        connection.idle_until_ns = boot_ns() + self._idle_ns
        self._idle.append(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """Forgets a connection that is gone."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._freed()

    def sweep(self, now_ns: int) -> None:
        """Closes what was unused for too long."""
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
            self._unreachable(caller, "no connection in time", timed_out=True)
        except OSError as error:
            self._unreachable(caller, f"no connection: {error}", timed_out=False)
        else:
            if caller.waiting:
                connection.use(caller)
            else:
                self.release(connection)

    def _unreachable(self, caller: Caller, reason: str, *, timed_out: bool) -> None:
        self._freed()
        if caller.waiting:
            caller.upstream_failed(reason, timed_out=timed_out)
