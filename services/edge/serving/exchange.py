"""The exchange: one request on its way to an upstream, and what can come between. Bodies stream both ways, each side as fast as
the other takes it. Its answer is in `answering`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import structlog
from typing_extensions import override

from services.edge.clock import SECOND, boot_ns, wall_ns
from services.edge.http.message import RequestHead
from services.edge.http.rewrite import request_head
from services.edge.routes import Route
from services.edge.serving import answers
from services.edge.serving.answering import NEVER, Answering
from services.edge.serving.answers import Answer
from services.edge.serving.edge import Edge
from services.edge.serving.passage import Passage
from services.edge.serving.upload import Upload
from services.edge.upstream.connection import Failure, UpstreamConnection
from services.edge.upstream.pool import Pool

if TYPE_CHECKING:
    from services.edge.serving.connection import ClientConnection

CLIENT_GONE: Final = 499
# RFC 9110, section 9.2.2.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_log = structlog.get_logger()


class Exchange(Answering):
    """One request and its answer. Made with the request's head; `start` begins, then it only reacts."""

    __slots__ = ("_fields", "_held", "_pool", "_retried", "request_done")

    def __init__(self, edge: Edge, client: ClientConnection, request: RequestHead, passage: Passage) -> None:
        self.passage = passage
        self.method = request.method
        self.request_done = request.empty
        self.ended = False
        self.deadline_ns = NEVER
        self._edge = edge
        self._client = client
        self._request = request
        self._out: list[bytes] = []
        self._fields = b""
        self._pool: Pool | None = None
        self._connection: UpstreamConnection | None = None
        self._upload = None if request.empty else Upload(request.framing)
        self._continue = request.expects_continue and not request.empty
        self._queued = False
        self._held = False
        self._retried = False
        self._responded = False
        self._released = False
        self._complete = False
        self._chunked = False
        self._keep = False
        edge.metrics.in_flight += 1

    @property
    def waiting(self) -> bool:
        """Whether nothing is answered yet, and a connection to the upstream of use."""
        return not self._responded and not self.ended

    @property
    def ready(self) -> bool:
        """Whether the upstream need not wait for the client."""
        return self._upload is None or self._upload.ready

    @property
    def held(self) -> int:
        """Bytes of the request's body that wait in memory."""
        return 0 if self._upload is None else self._upload.waits

    @property
    def pressed(self) -> bool:
        """Whether it has a connection that others wait for."""
        return self._connection is not None and self._pool is not None and self._pool.short

    # The request

    def start(self) -> None:
        """Answers, or sends the request on its way."""
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
        elif self._upload is not None and self._upload.size > route.body_max:
            self._answer(answers.TOO_LARGE)
        elif b"websocket" in self._request.upgrade:
            self._answer(answers.NO_UPGRADE)
        else:
            self._forward(route)

    def request_body(self, data: bytes) -> None:
        """A piece of the request's body, decoded."""
        upload = self._upload
        self._continue = False
        if self._complete or upload is None:
            # The answer did not wait for it, and nobody else does.
            return
        upload.received += len(data)
        if self._connection is None:
            upload.keep(data)
        if self._pool is None:
            # It came with the head: `start` judges.
            return
        route = cast(Route, self.passage.route)
        if upload.size > route.body_max:
            self._fail(answers.TOO_LARGE)
        elif self._connection is not None:
            self._connection.write(upload.framed(data))
        elif upload.ready:
            self._hold(hold=True)
            self._hurry()

    def request_end(self) -> None:
        """The request's body is complete."""
        self.request_done = True
        upload = self._upload
        if self._complete or upload is None:
            return
        upload.done = True
        if self._connection is not None:
            last = upload.end()
            if last:
                self._connection.write(last)
            self._await_response()
        elif self._pool is not None:
            self._hurry()

    def _forward(self, route: Route) -> None:
        edge, passage = self._edge, self.passage
        pool = self._pool = edge.pool(route.upstream)
        token = edge.identities.token(passage.key, route.audience, passage.time_ns) if passage.key else None
        self._fields = request_head(
            self._request,
            pool.authority,
            passage.request_id,
            correlation_id=passage.correlation_id,
            address=passage.address,
            token=token,
        )
        upload = self._upload
        if upload is None or upload.ready:
            self.deadline_ns = passage.admitted_ns + int(route.timeout * SECOND)
        pool.acquire(self)
        if self._connection is None:
            self._queued = True
            if upload is not None:
                self._send_for(upload)

    def _send_for(self, upload: Upload) -> None:
        """There is no connection yet: the body comes meanwhile, as far as it may."""
        if upload.waits and upload.ready and not upload.done:
            self._hold(hold=True)
        if self._continue:
            self._continue = False
            self._client.write(answers.CONTINUE)

    def _hurry(self) -> None:
        """All that it waits for now is a connection."""
        if self._queued and self._pool is not None:
            self._pool.hurry(self)
            self._await_response()

    # The upstream

    def upstream_ready(self, connection: UpstreamConnection) -> None:
        """A connection is there: the head goes out, and what has come of the body."""
        self._connection = connection
        waited, self._queued = self._queued, False
        upload = self._upload
        if upload is None:
            connection.write(self._fields)
            if waited:
                self._await_response()
            return
        connection.write(b"".join((self._fields, *upload.waited())))
        if self._continue:
            self._continue = False
            self._client.write(answers.CONTINUE)
        if self._held:
            self._hold(hold=False)
        self._client.count()
        if self.request_done:
            self._await_response()
        else:
            self.deadline_ns = NEVER

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
            self.upstream_failed(Failure.lost, "the connection ended in the response")
        elif connection is not None and self._pool is not None and self._may_retry(connection):
            self._retried = True
            self._queued = True
            self._pool.acquire(self, fresh=True)
        else:
            self.upstream_failed(Failure.lost, "the connection ended before a response")

    def upstream_full(self, *, full: bool) -> None:
        """The upstream takes no more of the body, or again."""
        self._hold(hold=full)
        if not self.request_done and not self._responded:
            self.deadline_ns = boot_ns() + self._body_idle_ns() if full else NEVER

    def _await_response(self) -> None:
        route = self.passage.route
        if not self._responded and route is not None:
            self.deadline_ns = boot_ns() + int(route.timeout * SECOND)

    def _may_retry(self, connection: UpstreamConnection) -> bool:
        if self._retried or not connection.reused:
            return False
        if not connection.sent:
            # The connection ended before its turn to be written to came: all there is to send must still be here.
            return self._upload is None or self._upload.whole
        return self._upload is None and self.method in _IDEMPOTENT

    # The answer

    def client_full(self, *, full: bool) -> None:
        """The client takes no more of the answer for now (`full`), or again."""
        if self._connection is not None:
            self._connection.hold(hold=full)
        if self._responded:
            self.deadline_ns = NEVER if full else boot_ns() + self._body_idle_ns()

    def client_failed(self, answer: Answer) -> None:
        """The request's body is malformed or does not come, or there is no room for it."""
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
        self.upstream_failed(Failure.timeout, "no response in time")

    def recheck(self) -> None:
        """Ends what is under way for a key that by now would be refused: 401 or 403, or a cut when some of it has left.

        Its record stays that of the call which it was admitted as. What one of the platform's services is working at has
        its answer: it may be the very command that ended the key.
        """
        passage = self.passage
        if not passage.metered or self._complete or self._at_work():
            return
        outcome = self._edge.gate.refused_now(passage, wall_ns())
        if outcome is not None:
            passage.close = True
            passage.verdict = None
            self._fail(answers.REFUSALS[outcome])

    def _at_work(self) -> bool:
        route = self.passage.route
        sent = self.request_done and self._connection is not None and not self._responded
        return sent and route is not None and route.platform

    @override
    def _leave(self) -> None:
        """Has nothing more to do with the upstream."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        elif self._queued and self._pool is not None:
            self._queued = False
            self._pool.leave(self)

    def _hold(self, *, hold: bool) -> None:
        if hold is not self._held:
            self._held = hold
            self._client.hold(hold=hold)
