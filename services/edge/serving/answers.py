"""What the edge itself answers: problems (RFC 9457) with a stable code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

import msgspec

from services.edge.clock import SECOND, wall_ns
from services.edge.domain import Outcome
from services.edge.domain import problem as problem_of
from services.edge.http.message import BadMessage
from services.edge.http.rewrite import REASONS

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# An edge that is not ready is, within seconds, or somebody must look.
RETRY_AFTER_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the edge's own. `fields` are header lines, each ended; a problem's `body` is made for each request."""

    status: int
    code: str
    title: str = ""
    fields: bytes = b""
    detail: str | None = None
    content: bytes | None = None

    def encode(self, request_id: bytes, more: bytes, *, to_head: bool) -> bytes:
        """The whole answer, with the header lines `more` in it; without its body when the method was HEAD, or at 304."""
        body = self._problem(request_id) if self.content is None else self.content
        head = b"HTTP/1.1 %d %b\r\nDate: %b\r\n%bX-Request-ID: %b\r\nContent-Length: %d\r\n%b\r\n" % (
            self.status,
            REASONS[self.status],
            date(),
            self.fields,
            request_id,
            len(body),
            more,
        )
        return head if to_head or self.status == HTTPStatus.NOT_MODIFIED else head + body

    def _problem(self, request_id: bytes) -> bytes:
        members = {"type": "about:blank", "title": self.title, "status": self.status, "code": self.code}
        members["request_id"] = request_id.decode()
        if self.detail:
            members["detail"] = self.detail
        return msgspec.json.encode(members)


_PROBLEM_FIELDS = b"Content-Type: application/problem+json\r\nCache-Control: no-store\r\n"


def problem(status: int, code: str, title: str, *, detail: str | None = None, fields: bytes = b"") -> Answer:
    """A problem detail."""
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        fields += b"Retry-After: %d\r\n" % RETRY_AFTER_SECONDS
    return Answer(status, code, title, _PROBLEM_FIELDS + fields, detail)


def _refusal(outcome: Outcome) -> Answer:
    status, code, title = problem_of(outcome)
    fields = b"WWW-Authenticate: ApiKey\r\n" if status == HTTPStatus.UNAUTHORIZED else b""
    if outcome is Outcome.too_many_open:
        # Whoever of them ends first makes room.
        fields = b"Retry-After: 1\r\n"
    return problem(status, code, title, fields=fields)


REFUSALS: dict[Outcome, Answer] = {outcome: _refusal(outcome) for outcome in Outcome if outcome is not Outcome.allowed}
# Whoever gets this knows that the request was neither forwarded nor counted; with the other it is not counted, but may have
# been carried out.
NOT_READY = REFUSALS[Outcome.not_ready]
NOT_RECORDED = problem(503, "not_recorded", "The request can't be counted now, and may have been carried out")
NOT_FOUND = problem(404, "not_found", "Not found")
TOO_LARGE = problem(413, "too_large", "Request body too large")
NO_UPGRADE = problem(501, "not_implemented", "Not implemented", detail="Connections are not upgraded.")
BAD_GATEWAY = problem(502, "bad_gateway", "The upstream gave no valid answer")
GATEWAY_TIMEOUT = problem(504, "gateway_timeout", "The upstream did not answer in time")
INTERNAL = problem(500, "internal", "Internal server error")
UNAVAILABLE = problem(503, "unavailable", "Temporarily unavailable")
REQUEST_TIMEOUT = problem(408, "timeout", "The request did not arrive in time")


def method_not_allowed(allowed: Iterable[str]) -> Answer:
    """405 with the methods that are."""
    allow = b"Allow: %b\r\n" % ", ".join(allowed).encode()
    return problem(405, "method_not_allowed", "Method not allowed", fields=allow)


def malformed(error: BadMessage) -> Answer:
    """What a client is told whose request can't be read."""
    title = REASONS[error.status].decode()
    return problem(error.status, error.code, title, detail=str(error))


def date() -> bytes:
    """Now, as the value of a Date header."""
    return _date(wall_ns() // SECOND)


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
