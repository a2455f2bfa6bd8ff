"""Heads written anew: what an upstream is told of a request, and a client of a response. No byte of a head is passed on as
it came, only what was understood of it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from services.edge.http.message import METHODS, NO_LENGTH, Framing, RequestHead, ResponseHead

# As RFC 9110, section 15, has them, whatever version of Python knows them by their older names.
REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus} | {
    413: b"Content Too Large",
    414: b"URI Too Long",
    416: b"Range Not Satisfiable",
    422: b"Unprocessable Content",
}


def request_head(
    request: RequestHead,
    authority: bytes,
    request_id: str,
    *,
    correlation_id: str | None,
    address: str | None,
    token: bytes | None,
) -> bytes:
    """The head for the upstream at `authority`, with who asks: our identity `token`, where there is a key."""
    framing = request.framing
    parts = [_BEGINNINGS[request.method], request.target, b" HTTP/1.1\r\nHost: ", authority, b"\r\n", request.fields]
    if framing is not NO_LENGTH:
        parts.append(_framing(framing))
    parts.append(_VIA[request.minor])
    if address:
        parts += (b"X-Forwarded-For: ", address.encode(), b"\r\n")
    if request.host:
        parts += (b"X-Forwarded-Host: ", request.host, b"\r\n")
    if correlation_id is not None:
        parts += (b"X-Correlation-ID: ", correlation_id.encode(), b"\r\n")
    if token is not None:
        parts += (b"Keyledger-Identity: ", token, b"\r\n")
    parts += (b"X-Request-ID: ", request_id.encode(), b"\r\n\r\n")
    return b"".join(parts)


_BEGINNINGS: Final = {method: method.encode() + b" " for method in METHODS}
# By the version that the client spoke (RFC 9110, section 7.6.3).
_VIA: Final = [b"Via: 1.%d keyledger\r\nX-Forwarded-Proto: http\r\n" % minor for minor in (0, 1)]


def response_head(
    head: ResponseHead, request_id: str, limits: bytes, *, date: bytes, platform: bool, chunked: bool, keep: bool
) -> bytes:
    """The head for the client. `limits` (header lines) and the request id are the edge's, over what the upstream says.

    `date`: when the response was made, or came (RFC 9110, section 6.6.1). `platform`: the upstream is one of the platform's
    own services, whose `Keyledger-` fields pass.
    """
    fields, reason = head.fields, head.reason
    if platform:
        fields, reason = fields + head.platform, REASONS.get(head.status, reason)
    length = head.framing.length
    framing = _CHUNKED if chunked else b""
    if length is not None and head.status != 204:
        framing = b"Content-Length: %d\r\n" % length
    return b"".join(
        (
            _STATUSES[head.status],
            reason,
            b"\r\nDate: ",
            date,
            b"\r\n",
            fields,
            framing,
            b"X-Request-ID: ",
            request_id.encode(),
            b"\r\n",
            limits,
            b"\r\n" if keep else b"Connection: close\r\n\r\n",
        )
    )


_STATUSES: Final = {status: b"HTTP/1.1 %d " % status for status in range(100, 600)}
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


def _framing(framing: Framing) -> bytes:
    if framing.chunked:
        return _CHUNKED
    return b"" if framing.length is None else b"Content-Length: %d\r\n" % framing.length
