"""What each header name means to the edge: read, passed on, or dropped. Names are compared after normalisation, as an
upstream might (CGI turns both `X-Owner-Id` and `X.Owner_Id` into one variable), so no spelling of a header of ours that
a client or an upstream sends gets through.
"""

from __future__ import annotations

from collections.abc import Callable

_MEMO_MAX = 4096
_NORMALISED = bytes(c if chr(c).isalnum() and c < 128 else ord("-") for c in range(256)).lower()


# What the edge does with a header. Plain integers: an enumeration's hash is slow, and this is done for every header.
KINDS = 11
(PASS, DROP, LENGTH, ENCODING, CONNECTION, HOST, EXPECT, UPGRADE, KEY, REQUEST_ID, PLATFORM) = range(KINDS)

# RFC 9110, section 7.6.1, and what was hop-by-hop before it.
_HOP_BY_HOP = {
    b"content-length": LENGTH,
    b"transfer-encoding": ENCODING,
    b"connection": CONNECTION,
    b"keep-alive": DROP,
    b"te": DROP,
    b"trailer": DROP,
    b"upgrade": UPGRADE,
    b"http2-settings": DROP,
}
_REQUEST_KINDS = _HOP_BY_HOP | {
    b"host": HOST,
    b"expect": EXPECT,
    b"x-api-key": KEY,
    b"x-request-id": REQUEST_ID,
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
        DROP,
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
    DROP,
)
_REQUEST_DROPPED = (b"keyledger-", b"x-forwarded-", b"proxy-")


def _request_kind(name: bytes) -> int:
    normal = name.translate(_NORMALISED)
    if normal.startswith(_REQUEST_DROPPED):
        return DROP
    return _spelt(name, normal, _REQUEST_KINDS.get(normal, PASS))


def _response_kind(name: bytes) -> int:
    normal = name.translate(_NORMALISED)
    if normal.startswith(b"proxy-"):
        return DROP
    kind = _RESPONSE_KINDS.get(normal, PLATFORM if normal.startswith(b"keyledger-") else PASS)
    return _spelt(name, normal, kind)


def _spelt(name: bytes, normal: bytes, kind: int) -> int:
    return DROP if kind != PASS and name.lower() != normal else kind


class _Kinds(dict[bytes, int]):
    """Kinds by name, worked out when asked for and then remembered."""

    def __init__(self, judge: Callable[[bytes], int]) -> None:
        super().__init__()
        self._judge = judge

    def __missing__(self, name: bytes) -> int:
        kind = self._judge(name)
        # Clients choose names: the memo is for the few hundred that recur.
        if len(self) < _MEMO_MAX:
            self[name] = kind
        return kind


request_kind = _Kinds(_request_kind).__getitem__
"""What a request's header is, by its name as it was sent."""
response_kind = _Kinds(_response_kind).__getitem__
"""What a response's header is; PLATFORM passes from the platform's own services only."""
