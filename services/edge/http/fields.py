"""What each header name means to the edge: read, passed on, or dropped. Names are compared after normalisation, as an
upstream might (CGI turns both `X-Owner-Id` and `X.Owner_Id` into one variable), so no spelling of a header of ours that
a client or an upstream sends gets through.
"""

from __future__ import annotations

from collections.abc import Callable

from services.edge.memo import Memo

# Of names, in bytes, each with what a dict needs for it: the few hundred that recur.
_MEMO = 64 * 1024
_ENTRY = 128
_NORMALISED = bytes(c if chr(c).isalnum() and c < 128 else ord("-") for c in range(256)).lower()


# What the edge does with a header. SECRET passes like PASS, but no line of it is remembered.
# Plain integers: an enumeration's hash is slow, and this is done for every header.
(PASS, DROP, LENGTH, ENCODING, CONNECTION, HOST, EXPECT, UPGRADE, KEY, REQUEST_ID, PLATFORM, DATE, SECRET) = range(13)

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
REQUEST_KINDS = _HOP_BY_HOP | {
    b"host": HOST,
    b"expect": EXPECT,
    b"x-api-key": KEY,
    b"authorization": SECRET,
    b"cookie": SECRET,
    b"x-request-id": REQUEST_ID,
    # The edge alone says who asked, for whom, by which method and for which path.
    **dict.fromkeys(
        (
            b"x-correlation-id",
            b"forwarded",
            b"x-real-ip",
            b"x-client-ip",
            b"true-client-ip",
            # CGI makes of it the variable by which libraries find their proxy.
            b"proxy",
            b"x-http-method",
            b"x-http-method-override",
            b"x-method-override",
            b"x-original-url",
            b"x-rewrite-url",
        ),
        DROP,
    ),
}
RESPONSE_KINDS = _HOP_BY_HOP | {
    b"date": DATE,
    b"set-cookie": SECRET,
    **dict.fromkeys(
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
    ),
}
_PASSED = {PASS, SECRET}
REQUEST_DROPPED = (b"keyledger-", b"x-forwarded-", b"proxy-")
RESPONSE_PREFIXES = {b"proxy-": DROP, b"keyledger-": PLATFORM}


def _request_kind(name: bytes) -> int:
    normal = name.translate(_NORMALISED)
    if normal.startswith(REQUEST_DROPPED):
        return DROP
    return _spelt(name, normal, REQUEST_KINDS.get(normal, PASS))


def _response_kind(name: bytes) -> int:
    normal = name.translate(_NORMALISED)
    begun = next((kind for prefix, kind in RESPONSE_PREFIXES.items() if normal.startswith(prefix)), PASS)
    return _spelt(name, normal, RESPONSE_KINDS.get(normal, begun))


def _spelt(name: bytes, normal: bytes, kind: int) -> int:
    return DROP if kind not in _PASSED and name.lower() != normal else kind


class Kinds(Memo[bytes, int]):
    """Kinds by name, worked out when they are asked for. Anybody chooses names, so they are remembered only by `learn`."""

    def __init__(self, judge: Callable[[bytes], int]) -> None:
        super().__init__(_MEMO, lambda name, _: len(name) + _ENTRY)
        self._judge = judge
        self.new: list[tuple[bytes, int]] = []

    def __missing__(self, name: bytes) -> int:
        kind = self.revive(name)
        if kind is None:
            kind = self._judge(name)
            self.new.append((name, kind))
        return kind

    def learn(self) -> None:
        """Remembers the names in `new`: who sent them is known."""
        for name, kind in self.new:
            self.keep(name, kind)
        self.new.clear()


request_kinds = Kinds(_request_kind)
"""What a request's header is, by its name as it was sent. `new` has the names of the request that was read last."""
response_kinds = Kinds(_response_kind)
"""What a response's header is; PLATFORM passes from the platform's own services only."""
