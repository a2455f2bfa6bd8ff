"""What each header name means to the edge: read, passed on, or dropped. Names are compared after normalisation, as an
upstream might (CGI turns both `X-Owner-Id` and `X.Owner_Id` into one variable), so no spelling of a header of ours that
a client or an upstream sends gets through.
"""

from __future__ import annotations

from enum import IntEnum

_MEMO_MAX = 4096
_NORMALISED = bytes(c if chr(c).isalnum() and c < 128 else ord("-") for c in range(256)).lower()


class Kind(IntEnum):
    """What the edge does with a header."""

    PASS = 0
    DROP = 1
    LENGTH = 2
    ENCODING = 3
    CONNECTION = 4
    HOST = 5
    EXPECT = 6
    UPGRADE = 7
    KEY = 8
    REQUEST_ID = 9
    PLATFORM = 10


# RFC 9110, section 7.6.1, and what was hop-by-hop before it.
_HOP_BY_HOP = {
    b"content-length": Kind.LENGTH,
    b"transfer-encoding": Kind.ENCODING,
    b"connection": Kind.CONNECTION,
    b"keep-alive": Kind.DROP,
    b"te": Kind.DROP,
    b"trailer": Kind.DROP,
    b"upgrade": Kind.UPGRADE,
    b"http2-settings": Kind.DROP,
}
_REQUEST_KINDS = _HOP_BY_HOP | {
    b"host": Kind.HOST,
    b"expect": Kind.EXPECT,
    b"x-api-key": Kind.KEY,
    b"x-request-id": Kind.REQUEST_ID,
    # The edge alone says who asked, for whom, by which method and for which path.
    **dict.fromkeys(
        (
            b"x-correlation-id",
            b"forwarded",
            b"x-real-ip",
            b"x-client-ip",
            b"true-client-ip",
            b"x-http-method",
            b"x-http-method-override",
            b"x-method-override",
            b"x-original-url",
            b"x-rewrite-url",
        ),
        Kind.DROP,
    ),
}
_RESPONSE_KINDS = _HOP_BY_HOP | dict.fromkeys(
    (
        b"x-request-id",
        b"x-ratelimit-limit",
        b"x-ratelimit-remaining",
        b"x-ratelimit-reset",
        b"ratelimit",
        b"ratelimit-policy",
        b"ratelimit-limit",
        b"ratelimit-remaining",
        b"ratelimit-reset",
        b"keyledger-identity",
    ),
    Kind.DROP,
)
_REQUEST_DROPPED = (b"keyledger-", b"x-forwarded-", b"proxy-")

_requests: dict[bytes, Kind] = {}
_responses: dict[bytes, Kind] = {}


def request_kind(name: bytes) -> Kind:
    """What a request's header is, by its name as it was sent."""
    kind = _requests.get(name)
    if kind is None:
        kind = _remember(_requests, name, _request_kind(name))
    return kind


def response_kind(name: bytes) -> Kind:
    """What a response's header is; PLATFORM passes from the platform's own services only."""
    kind = _responses.get(name)
    if kind is None:
        kind = _remember(_responses, name, _response_kind(name))
    return kind


def _request_kind(name: bytes) -> Kind:
    normal = name.translate(_NORMALISED)
    if normal.startswith(_REQUEST_DROPPED):
        return Kind.DROP
    return _spelt(name, normal, _REQUEST_KINDS.get(normal, Kind.PASS))


def _response_kind(name: bytes) -> Kind:
    normal = name.translate(_NORMALISED)
    if normal.startswith(b"proxy-"):
        return Kind.DROP
    kind = _RESPONSE_KINDS.get(normal, Kind.PLATFORM if normal.startswith(b"keyledger-") else Kind.PASS)
    return _spelt(name, normal, kind)


def _spelt(name: bytes, normal: bytes, kind: Kind) -> Kind:
    return Kind.DROP if kind is not Kind.PASS and name.lower() != normal else kind


def _remember(memo: dict[bytes, Kind], name: bytes, kind: Kind) -> Kind:
    # Clients choose names: the memo is for the few hundred that recur.
    if len(memo) < _MEMO_MAX:
        memo[name] = kind
    return kind
