"""Heads written anew: what an upstream is told of a request, and a client of a response. No byte of a head is passed on as
it came, only what was understood of it.
"""

from __future__ import annotations

from functools import lru_cache

from services.edge.gate import Passage
from services.edge.http1 import Framing, RequestHead, ResponseHead


def request_head(request: RequestHead, passage: Passage, authority: bytes, token: bytes | None) -> bytes:
    """The head for the upstream at `authority`, with who asks: our identity `token`, where there is a key."""
    correlation = passage.correlation_id
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b%bX-Request-ID: %b\r\n%b%b\r\n" % (
        request.method.encode(),
        request.target,
        authority,
        b"".join([b"%b: %b\r\n" % field for field in request.fields]),
        _framing(request.framing),
        _forwarded(passage.address, request.host),
        passage.request_id.encode(),
        b"" if correlation is None else b"X-Correlation-ID: %b\r\n" % correlation.encode(),
        b"" if token is None else b"Keyledger-Identity: %b\r\n" % token,
    )


@lru_cache(maxsize=4096)
def _forwarded(address: str | None, host: bytes) -> bytes:
    lines = [b"X-Forwarded-Proto: http\r\n"]
    if address:
        lines.append(b"X-Forwarded-For: %b\r\n" % address.encode())
    if host:
        lines.append(b"X-Forwarded-Host: %b\r\n" % host)
    return b"".join(lines)


def response_head(head: ResponseHead, passage: Passage, *, chunked: bool, keep: bool) -> bytes:
    """The head for the client. Limits and request id are the edge's, over what the upstream says of them."""
    fields = head.fields
    if head.platform and passage.route is not None and passage.route.platform:
        fields = fields + head.platform
    framing = _CHUNKED if chunked else b""
    if head.framing.length is not None and head.status != 204:
        framing = _framing(head.framing)
    return b"HTTP/1.1 %d %b\r\n%b%bX-Request-ID: %b\r\n%b%b" % (
        head.status,
        head.reason,
        b"".join([b"%b: %b\r\n" % field for field in fields]),
        framing,
        passage.request_id.encode(),
        passage.limit_fields(),
        b"\r\n" if keep else b"Connection: close\r\n\r\n",
    )


_CHUNKED = b"Transfer-Encoding: chunked\r\n"


def _framing(framing: Framing) -> bytes:
    if framing.chunked:
        return _CHUNKED
    return b"" if framing.length is None else b"Content-Length: %d\r\n" % framing.length
