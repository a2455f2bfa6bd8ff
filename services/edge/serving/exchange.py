"""The exchange: one request on its way from a client to an answer, the upstream's or the edge's own. Bodies stream both
ways, each side as fast as the other takes it; the answer's head waits for its record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from services.edge.clock import SECOND, boot_ns, wall_ns
from services.edge.http.body import LAST_CHUNK, chunk
from services.edge.http.head import RequestHead, ResponseHead
from services.edge.http.rewrite import request_head, response_head
from services.edge.identity import Identities
from services.edge.routes import Route
from services.edge.serving import answers
from services.edge.serving.answers import Answer
from services.edge.serving.gate import Gate
from services.edge.serving.ledger import Ledger
from services.edge.serving.metrics import Metrics
from services.edge.serving.passage import Passage
from services.edge.settings import EdgeSettings
from services.edge.upstream.connection import Failure, UpstreamConnection
from services.edge.upstream.pool import Upstream

NEVER = 1 << 62
CLIENT_GONE = 499
_AHEAD_MAX = 64 * 1024
# RFC 9110, section 9.2.2.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_log = structlog.get_logger()


@dataclass(frozen=True)
class Edge:
    """What all exchanges of a serving process share. `upstream` finds the upstream of an origin."""

    settings: EdgeSettings
    gate: Gate
    ledger: Ledger
    identities: Identities
    metrics: Metrics
    upstream: Callable[[str], Upstream]


class Client(Protocol):
    """The client's side of an exchange."""

    def write(self, data: bytes) -> None:
        """Sends bytes of the answer."""

    def hold(self, *, hold: bool) -> None:
        """Stops reading the request's body, or goes on."""

    def may_keep(self) -> bool:
        """Whether the connection can go on after this exchange, as far as is known now."""

    def finished(self, *, keep: bool) -> None:
        """The answer is complete; the connection goes on (`keep`) or ends once it is sent."""

    def abort(self) -> None:
        """Drops the connection: the answer can't be completed."""


class Exchange:
    """One request and its answer. Made with the request's head; `start` begins, then it only reacts."""

    # What most requests never change: to set it for each would cost more than all that they do.
    ended = False
    deadline_ns = NEVER
    _fields = b""
    _connection: UpstreamConnection | None = None
    _started = False
    _received = 0
    _held = False
    _body_sent = False
    _retried = False
    _responded = False
    _released = False
    _complete = False
    _chunked = False
    _keep = False

    def __init__(self, edge: Edge, client: Client, request: RequestHead, passage: Passage) -> None:
        self.passage = passage
        self.method = request.method
        self.request_done = request.framing.empty
        self._edge = edge
        self._client = client
        self._request = request
        self._continue = request.expects_continue and not self.request_done
        self._ahead: list[bytes] = []
        self._out: list[bytes] = []
        edge.metrics.in_flight += 1

    # The request

    @property
    def waiting(self) -> bool:
        """Whether a connection to the upstream is of use."""
        return not self._responded and not self.ended

    def start(self) -> None:
        """Answers, or sends the request on its way."""
        self._started = True
        if self._complete:
            # The beginning of the body that came with the head was no body.
            return
        passage, route = self.passage, self.passage.route
        if passage.metered and passage.answer is None:
            self._edge.ledger.admitted(passage)
        if passage.answer is not None:
            self._answer(passage.answer)
        elif route is None:
            self._answer(answers.NOT_FOUND)
        elif not self._request.framing.empty and self._too_large(route):
            self._answer(answers.TOO_LARGE)
        elif b"websocket" in self._request.upgrade:
            self._answer(answers.NO_UPGRADE)
        else:
            self._forward(route)

    def request_body(self, data: bytes) -> None:
        """A piece of the request's body, decoded."""
        self._continue = False
        self._received += len(data)
        route = self.passage.route
        if self._complete:
            # The answer did not wait for it, and nobody else does.
            return
        if self._started and route is not None and self._too_large(route):
            self._fail(answers.TOO_LARGE)
        else:
            self._pass_on(data)

    def request_end(self) -> None:
        """The request's body is complete."""
        self.request_done = True
        if self._connection is not None:
            if self._request.framing.chunked:
                self._body_sent = True
                self._connection.write(LAST_CHUNK)
            self._await_response()

    def _too_large(self, route: Route) -> bool:
        return max(self._request.framing.length or 0, self._received) > route.body_max

    def _forward(self, route: Route) -> None:
        edge, passage = self._edge, self.passage
        upstream = edge.upstream(route.upstream)
        token = edge.identities.token(passage.key, route.audience, passage.time_ns) if passage.key else None
        self._fields = request_head(
            self._request,
            upstream.authority,
            passage.request_id,
            correlation_id=passage.correlation_id,
            address=passage.address,
            token=token,
        )
        self.deadline_ns = passage.admitted_ns + int(route.timeout * SECOND)
        upstream.acquire(self)

    def _pass_on(self, data: bytes) -> None:
        if self._connection is None:
            self._ahead.append(data)
            if self._received > _AHEAD_MAX:
                self._hold(hold=True)
            return
        self._body_sent = True
        self._connection.write(chunk(data) if self._request.framing.chunked else data)

    # The upstream

    def upstream_ready(self, connection: UpstreamConnection) -> None:
        """A connection is there: the head goes out, and what has come of the body."""
        self._connection = connection
        if self._request.framing.empty:
            connection.write(self._fields)
        else:
            self._send_with_body(connection)
        if self._held:
            self._hold(hold=False)
        if self.request_done:
            self._await_response()
        else:
            self.deadline_ns = NEVER

    def _send_with_body(self, connection: UpstreamConnection) -> None:
        framed = self._request.framing.chunked
        ahead = [chunk(data) for data in self._ahead] if framed else self._ahead
        if framed and self.request_done:
            ahead.append(LAST_CHUNK)
        self._body_sent = bool(ahead)
        if not self.request_done:
            self._ahead = []
        connection.write(b"".join((self._fields, *ahead)))
        if self._continue:
            self._continue = False
            self._client.write(answers.CONTINUE)

    def upstream_failed(self, failure: Failure, reason: str) -> None:
        """No connection, or no response that can be read."""
        passage = self.passage
        route = passage.route_name
        if self._edge.metrics.upstream_failed(route, failure.value, boot_ns()):
            _log.warning(
                "upstream failed", route=route, failure=failure.value, reason=reason, request_id=passage.request_id
            )
        self._fail(answers.GATEWAY_TIMEOUT if failure is Failure.timeout else answers.BAD_GATEWAY)

    def upstream_lost(self) -> None:
        """The connection is gone in the middle."""
        connection, self._connection = self._connection, None
        if self._responded:
            self._cut()
        elif connection is not None and connection.reused and self._may_retry(connection):
            self._retried = True
            self._edge.upstream(self.passage.route.upstream).acquire(self, fresh=True)  # type: ignore[union-attr]
        else:
            self.upstream_failed(Failure.lost, "the connection ended before a response")

    def upstream_full(self, *, full: bool) -> None:
        """The upstream takes no more of the body, or again."""
        self._hold(hold=full)
        if not self.request_done and not self._responded:
            self.deadline_ns = boot_ns() + self._body_idle_ns() if full else NEVER

    def response_head(self, head: ResponseHead) -> None:
        """The upstream's response: its head is written anew and waits for its record."""
        now = boot_ns()
        self.deadline_ns = now + self._body_idle_ns()
        open_ended = head.framing.length is None and not head.bodiless
        self._chunked = open_ended and self._request.minor == 1
        # A client of HTTP/1.0 knows no chunks: its body ends with the connection.
        self._keep = self._may_keep() and (self._chunked or not open_ended)
        self._out.append(self._head(head))
        self._responded = True
        self._settle(head.status, now)

    def response(self, head: ResponseHead, body: bytes) -> None:
        """The upstream's response, all of it."""
        self._connection = None
        self._complete = True
        self._responded = True
        self._keep = self._may_keep()
        self._out.append(self._head(head) + body)
        self._settle(head.status, boot_ns())

    def _head(self, head: ResponseHead) -> bytes:
        passage = self.passage
        return response_head(
            head,
            passage.request_id,
            passage.limit_fields(),
            date=head.date or answers.date(),
            platform=passage.route is not None and passage.route.platform,
            chunked=self._chunked,
            keep=self._keep,
        )

    def response_body(self, data: bytes) -> None:
        """A piece of the response's body."""
        self.deadline_ns = boot_ns() + self._body_idle_ns()
        self._send(chunk(data) if self._chunked else data)

    def response_end(self) -> None:
        """The response is complete."""
        self._connection = None
        if self._chunked:
            self._send(LAST_CHUNK)
        self._complete = True
        if self._released:
            self._finish()

    def _await_response(self) -> None:
        route = self.passage.route
        if not self._responded and route is not None:
            self.deadline_ns = boot_ns() + int(route.timeout * SECOND)

    def _may_retry(self, connection: UpstreamConnection) -> bool:
        if self._retried:
            return False
        if not connection.sent:
            # The connection ended before its turn to be written to came: all there is to send must still be here.
            return sum(map(len, self._ahead)) == self._received
        if self._request.framing.empty:
            return self.method in _IDEMPOTENT
        return not self._body_sent

    # The answer

    def client_full(self, *, full: bool) -> None:
        """The client takes no more of the answer for now (`full`), or again."""
        if self._connection is not None:
            self._connection.hold(hold=full)
        if self._responded:
            self.deadline_ns = NEVER if full else boot_ns() + self._body_idle_ns()

    def client_failed(self, answer: Answer) -> None:
        """The request's body is malformed or does not come."""
        self.passage.close = True
        self._fail(self.passage.answer or answer)

    def client_lost(self) -> None:
        """The client is gone."""
        if self.ended:
            return
        if not self._responded:
            self._responded = True
            if self.passage.metered:
                self._edge.ledger.settle(self.passage, CLIENT_GONE, boot_ns(), None)
            else:
                self._edge.metrics.unmetered(self.passage.reason)
        self._end()

    def expire(self) -> None:
        """The deadline has passed: the upstream does not answer, or not go on."""
        if self._responded:
            self._cut()
        else:
            self.upstream_failed(Failure.timeout, "no response in time")

    def recheck(self) -> None:
        """Cuts off an answer that streams to a key which by now would be refused."""
        if self._responded and self.passage.metered and not self._edge.gate.still_allowed(self.passage, wall_ns()):
            self._cut()

    def _answer(self, answer: Answer) -> None:
        """Gives an answer of the edge's own."""
        passage = self.passage
        self._responded = True
        self._complete = True
        self._keep = self._may_keep()
        fields = passage.limit_fields() + (b"" if self._keep else b"Connection: close\r\n")
        to_head = self.method == "HEAD"
        self._out = [answer.encode(passage.request_id.encode(), fields, to_head=to_head)]
        self._settle(answer.status, boot_ns())

    def _fail(self, answer: Answer) -> None:
        """Gives an answer of the edge's own instead of the upstream's, or cuts that off."""
        self._drop_connection()
        if self._responded:
            self._cut()
        else:
            self._answer(answer)

    def _may_keep(self) -> bool:
        # Who waits for 100 and gets an answer may send the body all the same, or not: the connection can't go on.
        return self._client.may_keep() and not self.passage.close and not self._continue

    def _settle(self, status: int, now_ns: int) -> None:
        if self.passage.metered:
            self._edge.ledger.settle(self.passage, status, now_ns, self._release)
        else:
            self._edge.metrics.unmetered(self.passage.reason)
            self._release(True)

    def _release(self, recorded: bool) -> None:
        if self.ended:
            return
        if not recorded:
            self._unrecorded()
        self._released = True
        self._client.write(b"".join(self._out))
        self._out = []
        if self._complete:
            self._finish()

    def _unrecorded(self) -> None:
        """The record can't be written: an answer that would not be counted is not given."""
        self._drop_connection()
        self.passage.reason = "log_failed"
        self._edge.metrics.unmetered(self.passage.reason)
        self._complete = True
        fields = b"" if self._keep else b"Connection: close\r\n"
        to_head = self.method == "HEAD"
        self._out = [answers.UNAVAILABLE.encode(self.passage.request_id.encode(), fields, to_head=to_head)]

    def _send(self, data: bytes) -> None:
        if self._released:
            self._client.write(data)
        else:
            self._out.append(data)

    def _finish(self) -> None:
        keep = self._keep
        client = self._client
        self._end()
        client.finished(keep=keep)

    def _cut(self) -> None:
        """Ends an answer in the middle: the client sees that it is not whole."""
        client = self._client
        self._end()
        client.abort()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._edge.metrics.in_flight -= 1
        self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _hold(self, *, hold: bool) -> None:
        if hold is not self._held:
            self._held = hold
            self._client.hold(hold=hold)

    def _body_idle_ns(self) -> int:
        return int(self._edge.settings.body_idle_seconds * SECOND)
