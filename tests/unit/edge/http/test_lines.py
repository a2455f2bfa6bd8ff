"""Lines mean the same whether they are remembered or not; no secret is, and no flood fills the memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.http.fields import DROP, HOST, PASS, SECRET, Kinds, request_kinds, response_kinds
from services.edge.http.lines import MALFORMED, NO_HOST, Line, Lines

NAMES = [
    "Accept",
    "Host",
    "Connection",
    "Content-Length",
    "X-API-Key",
    "Authorization",
    "X_API_Key",
    "Keyledger-A",
    "",
    "A b",
]
lines = st.builds(
    lambda name, colon, value: (name + colon + value).encode("latin-1"),
    st.sampled_from(NAMES),
    st.sampled_from([":", ": ", ":\t ", " :", ""]),
    st.text(st.characters(max_codepoint=255), max_size=12),
)


def look(memo: Lines, line: bytes) -> Line:
    return memo.get(line) or memo.read(line)


def often(memo: Lines, line: bytes) -> Line:
    for _ in range(100):
        found = look(memo, line)
    return found


@pytest.mark.parametrize("kinds", [request_kinds, response_kinds])
@given(line=lines)
def test_a_line_means_the_same_however_often_it_comes(kinds: Kinds, line: bytes) -> None:
    assert often(Lines(kinds), line) == look(Lines(kinds), line)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        (b"Accept:a", (PASS, b"Accept: a\r\n")),
        (b"Accept: \t a ", (PASS, b"Accept: a \r\n")),
        (b"Cookie: a", (PASS, b"Cookie: a\r\n")),
        (b"X-Forwarded-For: a", (DROP, b"a")),
        (b"host: h:1 ", (HOST, b"h:1")),
        (b"Host: h/a", (NO_HOST, b"h/a")),
        (b"Accept", (MALFORMED, b"")),
        (b": a", (MALFORMED, b"")),
        (b"A : a", (MALFORMED, b"")),
        (b"A: a\x00", (MALFORMED, b"")),
        (b"A: a\r", (MALFORMED, b"")),
    ],
)
def test_what_is_used_of_a_line(line: bytes, read: Line) -> None:
    assert often(Lines(request_kinds), line) == read


@pytest.mark.parametrize(
    ("kinds", "line"),
    [
        (request_kinds, b"X-API-Key: kl_secret"),
        (request_kinds, b"x-api-key: kl_secret"),
        (request_kinds, b"X_Api_Key: kl_secret"),
        (request_kinds, b"Api-Key: kl_secret"),
        (request_kinds, b"Authorization: Bearer secret"),
        (request_kinds, b"AUTHORIZATION: Bearer secret"),
        (request_kinds, b"Proxy-Authorization: Basic secret"),
        (request_kinds, b"Cookie: a=secret"),
        (response_kinds, b"Set-Cookie: a=secret"),
        (response_kinds, b"Keyledger-Identity: secret"),
    ],
)
def test_no_secret_is_remembered(kinds: Kinds, line: bytes) -> None:
    memo = Lines(kinds)
    often(memo, line)
    often(memo, b"Accept: a")
    assert list(memo) == [b"Accept: a"]


def flood(memo: Lines, line_of: Callable[[int], bytes], times: int) -> None:
    for number in range(20_000):
        for _ in range(times):
            look(memo, line_of(number))


def test_made_up_lines_fill_nothing() -> None:
    memo = Lines(request_kinds)
    flood(memo, lambda number: b"X-A: %d" % number, 1)
    assert not memo


def test_recurring_lines_are_bounded_by_their_bytes() -> None:
    memo = Lines(request_kinds)
    often(memo, b"X-Long: " + b"a" * 600)
    assert not memo
    flood(memo, lambda number: b"X-A: %d" % number + b"a" * 400, 40)
    assert 0 < sum(map(len, memo)) <= 512 * 1024


def test_secrets_are_told_apart_by_name_only() -> None:
    assert request_kinds[b"Cookie"] == SECRET
    assert request_kinds[b"Cookie2"] == PASS
