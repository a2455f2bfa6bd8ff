"""The answer's side of an exchange: the head written anew, its record before its first byte, and then the rest as it comes; or an
answer of the edge's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.edge.clock import SECOND, boot_ns
from services.edge.http.body import LAST_CHUNK, chunk
from services.edge.http.message import RequestHead, ResponseHead
from services.edge.http.rewrite import response_head
from services.edge.serving import answers
from services.edge.serving.answers import Answer
from services.edge.serving.edge import Edge
from services.edge.serving.limits import limit_fields
from services.edge.serving.passage import Passage
from services.edge.serving.upload import Upload
from services.edge.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    from services.edge.serving.connection import ClientConnection

# Compiled, it is a machine word.
NEVER: Final = 1 << 61


class Answering:
    """What a request's answer is made of, and its way to the client. The request's own way is in `exchange`."""

    __slots__ = (
        "_chunked", "_client", "_complete", "_connection", "_continue", "_edge", "_keep", "_out", "_queued", "_released",
        "_request", "_responded", "_upload", "deadline_ns", "ended", "method", "passage",
    )  # fmt: skip

    passage: Passage
    method: str
    ended: bool
    deadline_ns: int
    _edge: Edge
    _client: ClientConnection
    _request: RequestHead
    _upload: Upload | None
    _connection: UpstreamConnection | None
    _queued: bool
    _out: list[bytes]
    _continue: bool
    _responded: bool
    _released: bool
    _complete: bool
    _chunked: bool
    _keep: bool

    def _leave(self) -> None:
        """Has nothing more to do with the upstream."""
        raise NotImplementedError

    # The upstream's

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
        self._out = [self._head(head), body]
        self._settle(head.status, boot_ns())

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

    def _head(self, head: ResponseHead) -> bytes:
        passage, verdict = self.passage, self.passage.verdict
        return response_head(
            head,
            passage.request_id,
            b"" if verdict is None else limit_fields(verdict, passage.admitted_ns, passage.time_ns),
            date=head.date or answers.date(),
            platform=passage.route is not None and passage.route.platform,
            chunked=self._chunked,
            keep=self._keep,
        )

    # The edge's own

    def _answer(self, answer: Answer) -> None:
        """Gives an answer of the edge's own."""
        self._responded = True
        self._encode(answer)
        self._settle(answer.status, boot_ns())

    def _encode(self, answer: Answer) -> None:
        self._keep = self._may_keep()
        self._replace(answer, self.passage.limit_fields())
        if self._upload is not None:
            self._upload.drop()

    def _replace(self, answer: Answer, fields: bytes) -> None:
        """All that leaves is this answer, with these fields besides its own."""
        self._complete = True
        if not self._keep:
            fields += b"Connection: close\r\n"
        self._out = [answer.encode(self.passage.request_id.encode(), fields, to_head=self.method == "HEAD")]

    def _fail(self, answer: Answer) -> None:
        """Gives an answer of the edge's own instead of the upstream's, or cuts that off if some of it has left."""
        self._leave()
        if self._released:
            self._cut()
        elif not self._responded:
            self._answer(answer)
        elif self._complete:
            # It is whole, and leaves with this turn.
            self._keep = False
        else:
            self._encode(answer)
            self._edge.ledger.revise(self.passage, answer.status)

    # Its way

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
        if self._complete:
            self._finish()
        else:
            self._out = []

    def _unrecorded(self) -> None:
        """The record can't be written: an answer that would not be counted is not given."""
        self._leave()
        self.passage.reason = "log_failed"
        self._edge.metrics.unmetered(self.passage.reason)
        self._replace(answers.NOT_RECORDED, b"")

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
            self._edge.gate.ended(self.passage)
        if self._connection is not None or self._queued:
            self._leave()

    def _body_idle_ns(self) -> int:
        return int(self._edge.settings.body_idle_seconds * SECOND)
