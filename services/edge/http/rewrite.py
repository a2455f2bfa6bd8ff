"""Heads written anew: what an upstream is told of a request, and a client of a response. No byte of a head is passed on as
it came, only what was understood of it.
"""

from __future__ import annotations

from functools import lru_cache

from services.edge.http.head import Framing, RequestHead, ResponseHead


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
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b%bX-Request-ID: %b\r\n%b%b\r\n" % (
        request.method.encode(),
        request.target,
        authority,
        b"".join([b"%b: %b\r\n" % field for field in request.fields]),
        _framing(request.framing),
        _forwarded(address, request.host),
        request_id.encode(),
        b"" if correlation_id is None else b"X-Correlation-ID: %b\r\n" % correlation_id.encode(),
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


def response_head(
    head: ResponseHead, request_id: str, limits: bytes, *, platform: bool, chunked: bool, keep: bool
) -> bytes:
    """The head for the client. `limits` (header lines) and the request id are the edge's, over what the upstream says.

    `platform`: the upstream is one of the platform's own services, whose `Keyledger-` fields pass.
    """
    fields = head.fields + head.platform if platform else head.fields
    framing = _CHUNKED if chunked else b""
    if head.framing.length is not None and head.status != 204:
        framing = _framing(head.framing)
    return b"HTTP/1.1 %d %b\r\n%b%bX-Request-ID: %b\r\n%b%b" % (
        head.status,
        head.reason,
        b"".join([b"%b: %b\r\n" % field for field in fields]),
        framing,
        request_id.encode(),
        limits,
        b"\r\n" if keep else b"Connection: close\r\n\r\n",
    )


_CHUNKED = b"Transfer-Encoding: chunked\r\n"


def _framing(framing: Framing) -> bytes:
    if framing.chunked:
        return _CHUNKED
    return b"" if framing.length is None else b"Content-Length: %d\r\n" % framing.length
