"""Heads written anew: what an upstream is told of a request, and a client of a response. No byte of a head is passed on as
it came, only what was understood of it.
"""

from __future__ import annotations

from services.edge.gate import Passage
from services.edge.http1 import Framing, RequestHead, ResponseHead


def request_head(request: RequestHead, passage: Passage, authority: bytes, token: bytes | None) -> bytes:
    """The head for the upstream at `authority`, with who asks: our identity `token`, where there is a key."""
    lines = [
        b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (request.method.encode(), request.target, authority),
        *[b"%b: %b\r\n" % field for field in request.fields],
        _framing(request.framing),
        b"X-Request-ID: %b\r\nX-Forwarded-Proto: http\r\n" % passage.request_id.encode(),
    ]
    if passage.address:
        lines.append(b"X-Forwarded-For: %b\r\n" % passage.address.encode())
    if request.host:
        lines.append(b"X-Forwarded-Host: %b\r\n" % request.host)
    if passage.correlation_id:
        lines.append(b"X-Correlation-ID: %b\r\n" % passage.correlation_id.encode())
    if token is not None:
        lines.append(b"Keyledger-Identity: %b\r\n" % token)
    lines.append(b"\r\n")
    return b"".join(lines)


def response_head(head: ResponseHead, passage: Passage, *, chunked: bool, keep: bool) -> bytes:
    """The head for the client. Limits and request id are the edge's, over what the upstream says of them."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason), *[b"%b: %b\r\n" % field for field in head.fields]]
    if passage.route is not None and passage.route.platform:
        lines += [b"%b: %b\r\n" % field for field in head.platform]
    if head.framing.length is not None and head.status != 204:
        lines.append(_framing(head.framing))
    elif chunked:
        lines.append(_CHUNKED)
    lines.append(b"X-Request-ID: %b\r\n" % passage.request_id.encode())
    lines.append(passage.limit_fields())
    lines.append(b"\r\n" if keep else b"Connection: close\r\n\r\n")
    return b"".join(lines)


_CHUNKED = b"Transfer-Encoding: chunked\r\n"


def _framing(framing: Framing) -> bytes:
    if framing.chunked:
        return _CHUNKED
    return b"" if framing.length is None else b"Content-Length: %d\r\n" % framing.length
