"""Heads are read as RFC 9112 has them, and nothing is repaired."""

from __future__ import annotations

import pytest

from services.edge.http.fields import response_kinds
from services.edge.http.head import after_empty_lines, check_beginning, parse_request, parse_response
from services.edge.http.message import BadMessage, Framing, RequestHead


def head(*lines: str, first: str = "GET /a HTTP/1.1", host: str | None = "h") -> bytes:
    fields = ([f"Host: {host}"] if host is not None else []) + list(lines)
    return "\r\n".join([first, *fields, "", ""]).encode("latin-1")


def parse(data: bytes) -> RequestHead:
    return parse_request(data)


REFUSED = {
    "both lengths": head("Content-Length: 5", "Transfer-Encoding: chunked"),
    "both lengths, other order": head("Transfer-Encoding: chunked", "Content-Length: 5"),
    "two equal lengths": head("Content-Length: 5", "Content-Length: 5"),
    "two lengths": head("Content-Length: 5", "Content-Length: 6"),
    "list of lengths": head("Content-Length: 5, 5"),
    "length with sign": head("Content-Length: +5"),
    "length below zero": head("Content-Length: -5"),
    "length in hex": head("Content-Length: 0x5"),
    "length with underscore": head("Content-Length: 1_0"),
    "length with space": head("Content-Length: 1 0"),
    "empty length": head("Content-Length: "),
    "fractional length": head("Content-Length: 5.0"),
    "length in other digits": head("Content-Length: \xb2"),
    "huge length": head("Content-Length: 99999999999999999999"),
    "gzip, chunked": head("Transfer-Encoding: gzip, chunked"),
    "chunked, chunked": head("Transfer-Encoding: chunked, chunked"),
    "chunked twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked then identity": head("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "identity": head("Transfer-Encoding: identity"),
    "xchunked": head("Transfer-Encoding: xchunked"),
    "quoted chunked": head('Transfer-Encoding: "chunked"'),
    "chunked with parameter": head("Transfer-Encoding: chunked;a=b"),
    "chunked with vertical tab": head("Transfer-Encoding: \x0bchunked"),
    "empty encoding": head("Transfer-Encoding: "),
    "encoding in 1.0": head("Transfer-Encoding: chunked", first="POST / HTTP/1.0"),
    "bare LF after request line": b"GET / HTTP/1.1\nHost: h\r\n\r\n",
    "bare LF in headers": b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n",
    "bare CR in value": b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rC: d\r\n\r\n",
    "folded header": head("A: b", " c"),
    "folded with tab": head("A: b", "\tc"),
    "space before colon": head("Content-Length : 5"),
    "tab before colon": head("A\t: 5"),
    "space before name": b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
    "no colon": head("Abc"),
    "empty name": head(": b"),
    "NUL in value": head("A: b\x00c"),
    "NUL in name": head("A\x00: b"),
    "DEL in value": head("A: b\x7f"),
    "bell in value": head("A: \x07"),
    "8-bit name": head("\xc3\xa4: b"),
    "brackets in name": head("A[]: b"),
    "no host": head(host=None),
    "two hosts": head("Host: i"),
    "empty host": head(host=""),
    "host with path": head(host="h/a"),
    "host with user": head(host="u@h"),
    "host list": head(host="h, i"),
    "lower-case method": head(first="get / HTTP/1.1"),
    "no version": b"GET /\r\n\r\n",
    "version 0.9": head(first="GET / HTTP/0.9"),
    "version 1.2": head(first="GET / HTTP/1.2"),
    "version 2.0": head(first="GET / HTTP/2.0"),
    "lower-case version": head(first="GET / http/1.1"),
    "two spaces": head(first="GET  / HTTP/1.1"),
    "tab in the line": head(first="GET\t/ HTTP/1.1"),
    "space in target": head(first="GET /a b HTTP/1.1"),
    "trailing space": head(first="GET / HTTP/1.1 "),
    "8-bit target": head(first="GET /\xe4 HTTP/1.1"),
    "target without a slash": head(first="GET a HTTP/1.1"),
    "all of the server, but to get it": head(first="GET * HTTP/1.1"),
    "more than all of the server": head(first="OPTIONS ** HTTP/1.1"),
    "other scheme": head(first="GET ftp://h/a HTTP/1.1"),
    "authority with user": head(first="GET http://u@h/a HTTP/1.1"),
    "authority with port of letters": head(first="GET http://h:a/ HTTP/1.1"),
    "no authority": head(first="GET http:///a HTTP/1.1"),
    "absolute without host": head(first="GET http://h/a HTTP/1.1", host=None),
    "absolute and two hosts": head("Host: i", first="GET http://h/a HTTP/1.1"),
    "absolute over two lines": b"GET http://h\r\nA: /a HTTP/1.1\r\nHost: h\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown expectation": head("Expect: 200-ok"),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_could_mean_two_things_is_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        parse(data)


@pytest.mark.parametrize("line", ["CONNECT h:80", "CONNECT /", "TRACE /", "BREW /", "PROPFIND http://h/"])
def test_methods_that_nobody_needs_are_not_implemented(line: str) -> None:
    with pytest.raises(BadMessage) as raised:
        parse(head(first=f"{line} HTTP/1.1"))
    assert raised.value.status == 501


def test_a_request_is_taken_apart() -> None:
    request = parse(
        head(
            "X-API-Key: k ",
            "Accept: a",
            "accept: b",
            "Content-Length: 3",
            "X-Request-ID: c",
            first="POST /p?q HTTP/1.1",
        )
    )
    assert (request.method, request.target, request.minor, request.host) == ("POST", b"/p?q", 1, b"h")
    assert request.framing == Framing(length=3)
    assert request.keys == [b"k"]
    assert request.request_ids == [b"c"]
    assert request.fields == b"Accept: a\r\naccept: b\r\n"
    assert request.keep_alive


@pytest.mark.parametrize(
    ("lines", "first", "keep"),
    [
        ([], "GET / HTTP/1.1", True),
        (["Connection: close"], "GET / HTTP/1.1", False),
        (["Connection: X-A, CLOSE"], "GET / HTTP/1.1", False),
        (["Connection: keep-alive"], "GET / HTTP/1.0", False),
    ],
)
def test_keep_alive(lines: list[str], first: str, keep: bool) -> None:
    assert parse(head(*lines, first=first)).keep_alive is keep


def test_what_connection_names_is_dropped() -> None:
    request = parse(head("Connection: X-Secret, X-API-Key, Host", "X-Secret: 1", "X-Other: 2", "X-API-Key: k"))
    assert request.fields == b"X-Other: 2\r\n"
    assert request.keys == [b"k"]
    assert request.host == b"h"


@pytest.mark.parametrize(
    ("line", "target", "host"),
    [
        ("GET http://i/a?b", b"/a?b", b"i"),
        ("GET HTTPS://i:81/", b"/", b"i:81"),
        ("GET http://[::1]:81", b"/", b"[::1]:81"),
        ("GET http://i?b", b"/?b", b"i"),
        ("OPTIONS http://i", b"*", b"i"),
        ("OPTIONS http://i/", b"/", b"i"),
        ("OPTIONS *", b"*", b"h"),
    ],
)
def test_the_authority_of_an_absolute_target_replaces_host(line: str, target: bytes, host: bytes) -> None:
    request = parse(head("A: b", first=f"{line} HTTP/1.1"))
    assert (request.target, request.host, request.fields) == (target, host, b"A: b\r\n")


def test_empty_lines_before_a_request_are_none_of_it() -> None:
    data = head()
    assert after_empty_lines(data) == data
    assert after_empty_lines(b"\r\n" * 3 + data) == data
    assert after_empty_lines(b"\r\n\r") == b"\r"
    assert after_empty_lines(b"\n" + data) == b"\n" + data


def test_limits_of_a_head() -> None:
    assert parse(head(first=f"GET /{'a' * (8192 - 14)} HTTP/1.1")).method == "GET"
    assert _status(head(first=f"GET /{'a' * (8192 - 13)} HTTP/1.1")) == 414
    assert parse(head(*["A: b"] * 99)).fields == b"A: b\r\n" * 99
    assert _status(head(*["A: b"] * 100)) == 431
    fits = 32 * 1024 - len("\r\nHost: h\r\nA: \r\n\r\n")
    assert parse(head(f"A: {'b' * fits}")).fields
    assert _status(head(f"A: {'b' * (fits + 1)}")) == 431


def _status(data: bytes) -> int:
    with pytest.raises(BadMessage) as raised:
        parse(data)
    return raised.value.status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\nHost", 400),
        (b"GET / HTTP/1.1\rHost", 400),
        (b"GET /" + b"a" * 8192, 414),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 6000, 431),
    ],
)
def test_what_can_become_no_head_is_refused_before_its_end(data: bytes, status: int) -> None:
    with pytest.raises(BadMessage) as raised:
        for end in range(1, len(data) + 1, 7):
            check_beginning(data[:end], max(0, end - 7))
        check_beginning(data, 0)
    assert raised.value.status == status


def test_a_head_may_come_byte_by_byte() -> None:
    data = head("Accept: a")
    for end in range(1, len(data)):
        check_beginning(data[:end], end - 1)


def response(*lines: str, first: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


BAD_RESPONSES = {
    "both lengths": response("Content-Length: 5", "Transfer-Encoding: chunked"),
    "two lengths": response("Content-Length: 5", "Content-Length: 5"),
    "gzip, chunked": response("Transfer-Encoding: gzip, chunked"),
    "encoding in 1.0": response("Transfer-Encoding: chunked", first="HTTP/1.0 200 OK"),
    "control character in the reason": response(first="HTTP/1.1 200 O\x00K"),
    "status of two digits": response(first="HTTP/1.1 20 OK"),
    "status of four digits": response(first="HTTP/1.1 2000 OK"),
    "status below 100": response(first="HTTP/1.1 099 OK"),
    "status above 599": response(first="HTTP/1.1 600 OK"),
    "version 2": response(first="HTTP/2 200 OK"),
    "other protocol": response(first="ICY 200 OK"),
    "folded": response("A: b", " c"),
    "space before colon": response("Content-Length : 5"),
    "bare LF": b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
    "too many headers": response(*["A: b"] * 101),
}


@pytest.mark.parametrize("data", BAD_RESPONSES.values(), ids=BAD_RESPONSES.keys())
def test_bad_responses_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_response(data, "GET")


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\nX-%d: a\r\n folded\r\n\r\n", b"HTTP/1.1 2000 OK\r\nX-%d: a\r\n\r\n"]
)
def test_bad_responses_leave_nothing_behind(data: bytes) -> None:
    for number in range(100):
        with pytest.raises(BadMessage):
            parse_response(data % number, "GET")
    assert len(response_kinds.new) <= 2


@pytest.mark.parametrize(
    ("first", "method", "bodiless"),
    [
        ("HTTP/1.1 200 OK", "GET", False),
        ("HTTP/1.1 200 OK", "HEAD", True),
        ("HTTP/1.1 204 No Content", "GET", True),
        ("HTTP/1.1 304 Not Modified", "GET", True),
        ("HTTP/1.1 103 Early Hints", "GET", True),
        ("HTTP/1.1 404", "GET", False),
    ],
)
def test_which_responses_have_a_body(first: str, method: str, bodiless: bool) -> None:
    head = parse_response(response("Content-Length: 5", first=first), method)
    assert head.bodiless is bodiless
    assert head.framing == Framing(length=5)


@pytest.mark.parametrize(("lines", "date"), [([], b""), (["date: x"], b"x"), (["DATE: x ", "Date: y"], b"x")])
def test_the_date_of_a_response(lines: list[str], date: bytes) -> None:
    head = parse_response(response("A: b", *lines), "GET")
    assert (head.date, head.fields) == (date, b"A: b\r\n")
