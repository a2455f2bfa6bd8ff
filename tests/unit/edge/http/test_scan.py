"""The compiled taking apart of heads takes what is common, and takes it as `parts` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge import compiled
from services.edge.http import parts
from services.edge.http.fields import REQUEST_KINDS, RESPONSE_KINDS
from services.edge.http.message import BadMessage

if TYPE_CHECKING or compiled.RUNS:
    from services.edge.http import scan

pytestmark = pytest.mark.skipif(not compiled.RUNS, reason="plain Python runs")

NAMES = st.sampled_from(
    [name.decode() for name in {**REQUEST_KINDS, **RESPONSE_KINDS}]
    + ["Accept", "accept", "X_API_KEY", "Keyledger-A", "Proxy-A", "X-Forwarded-A", "K" * 63, "x" * 64, "", "A B", "é"]
).flatmap(lambda name: st.sampled_from([name, name.title(), name.upper(), name.replace("-", "_")]))
VALUES = st.one_of(
    st.sampled_from(
        ["", "h", "h:80", "[::1]", "keep-alive", "close, X-A", "3", "chunked", "100-continue", "\t x \t", "é"]
    ),
    st.text(st.characters(max_codepoint=255), max_size=6),
)
LINES = st.lists(st.tuples(NAMES, st.sampled_from([":", ": ", ":\t ", " :", ""]), VALUES).map("".join), max_size=8)
REQUEST_LINES = st.sampled_from(
    [
        "GET / HTTP/1.1",
        "POST /a?b HTTP/1.0",
        "GET / HTTP/1.2",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "PUT /\t HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET http://h/ HTTP/1.1",
        "get / HTTP/1.1",
        "GET /",
        "",
        "GET /é HTTP/1.1",
        "GET / HTTP/1.11",
    ]
)
STATUS_LINES = st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.0 404", "HTTP/1.1 700 x", "", "HTTP/1.1 200 \x7f"])


def written(first: str, lines: list[str]) -> bytes:
    return "\r\n".join(["", first, *lines, "", ""]).removeprefix("\r\n").encode("latin-1")


@given(REQUEST_LINES, LINES)
def test_a_request_is_what_it_is_to_the_plain_form(first: str, lines: list[str]) -> None:
    head = written(first, lines)
    taken = scan.request(head)
    assert taken is None or taken == parts.request(head)


@given(STATUS_LINES, LINES)
def test_a_response_is_what_it_is_to_the_plain_form(first: str, lines: list[str]) -> None:
    head = written(first, lines)
    taken = scan.response(head)
    assert taken is None or taken == parts.response(head)


@given(st.sampled_from(["GET / HTTP/1.1", "POST /a?b=c HTTP/1.0"]), LINES)
def test_what_the_plain_form_takes_is_taken(first: str, lines: list[str]) -> None:
    head = written(first, lines)
    try:
        plainly = parts.request(head)
    except BadMessage:
        assert scan.request(head) is None
    else:
        assert scan.request(head) == plainly


@pytest.mark.parametrize("count", [99, 100, 101])
@pytest.mark.parametrize("length", [1, 70, 77, 80])
def test_as_large_as_it_is_taken(count: int, length: int) -> None:
    head = written("GET / HTTP/1.1", ["Host:h", *[f"A:{'b' * length}"] * (count - 1)])
    taken = scan.request(head)
    assert (taken is not None) is (count <= parts.HEADERS_MAX and len(head) <= parts.REQUEST_LINE_MAX)
    assert taken is None or taken == parts.request(head)
    assert scan.response(head) is None or scan.response(head) == parts.response(head)


@pytest.mark.parametrize("cut", range(1, 60))
def test_the_beginning_of_a_head_is_none(cut: int) -> None:
    whole = written("GET / HTTP/1.1", ["Host: h", "X-API-Key: k", "Connection: keep-alive"])
    assert scan.request(whole[:-cut]) is None
    assert scan.response(whole[:-cut]) is None
    assert scan.request(whole) is not None
