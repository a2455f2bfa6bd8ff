"""The limits' headers and the edge's own answers, to the letter."""

from __future__ import annotations

import json

import pytest

from services.edge.clock import SECOND
from services.edge.domain import Limits, Outcome, Verdict
from services.edge.http.message import BadMessage
from services.edge.limiter import Limiter
from services.edge.serving import answers
from services.edge.serving.limits import limit_fields

WALL = 1_800_000_000 * SECOND
BOOT = 5_000 * SECOND


def fields(verdict: Verdict, boot: int = BOOT, wall: int = WALL) -> dict[str, str]:
    lines = limit_fields(verdict, boot, wall).decode().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_the_first_request_of_a_key() -> None:
    verdict = Limiter().admit(1, Limits(100, 1000, 10000), BOOT)
    assert fields(verdict) == {
        "X-RateLimit-Limit": "100",
        "X-RateLimit-Remaining": "99",
        "X-RateLimit-Reset": "1800000060",
        "RateLimit-Policy": '"minute";q=100;w=60, "hour";q=1000;w=3600, "day";q=10000;w=86400',
        "RateLimit": '"minute";r=99;t=60',
    }


@pytest.mark.parametrize(("wall", "reset"), [(WALL, 60), (WALL + 1, 61), (WALL + SECOND - 1, 61), (WALL + SECOND, 61)])
def test_reset_is_a_whole_second_and_never_too_early(wall: int, reset: int) -> None:
    verdict = Limiter().admit(1, Limits(100, 1000, 10000), BOOT)
    assert fields(verdict, wall=wall)["X-RateLimit-Reset"] == str(1_800_000_000 + reset)


def test_who_waits_until_reset_or_for_retry_after_is_admitted() -> None:
    limits = Limits(2, 1000, 10000)
    for fraction in (0, 1, 123_456_789, 499_999_999, SECOND - 1):
        limiter = Limiter()
        now, wall = BOOT + 7 * fraction, WALL + fraction
        for _ in range(2):
            assert limiter.admit(1, limits, now).allowed
        refused = limiter.admit(1, limits, now + SECOND // 3)
        told = fields(refused, now + SECOND // 3, wall + SECOND // 3)
        wait_ns = int(told["X-RateLimit-Reset"]) * SECOND - (wall + SECOND // 3)
        assert not limiter.peek(1, limits, now + SECOND // 3).allowed
        assert limiter.peek(1, limits, now + SECOND // 3 + wait_ns).allowed
        assert limiter.peek(1, limits, now + SECOND // 3 + int(told["Retry-After"]) * SECOND).allowed


@pytest.mark.parametrize("fraction", [0, 1, SECOND // 2, SECOND - 1])
def test_nobody_is_told_to_wait_longer_than_the_window(fraction: int) -> None:
    limiter = Limiter()
    assert limiter.admit(1, Limits(1, None, None), BOOT).allowed
    refused = limiter.admit(1, Limits(1, None, None), BOOT)
    assert fields(refused, wall=WALL + fraction)["Retry-After"] == "60"


@pytest.mark.parametrize(
    ("status", "phrase"), [(413, "Content Too Large"), (414, "URI Too Long"), (408, "Request Timeout")]
)
def test_phrases_are_those_of_rfc_9110(status: int, phrase: str) -> None:
    answer = answers.malformed(BadMessage("x", status)).encode(b"", b"", to_head=True)
    assert answer.startswith(f"HTTP/1.1 {status} {phrase}\r\n".encode())


def test_a_key_without_limits_is_told_nothing() -> None:
    assert limit_fields(Limiter().admit(1, Limits(), BOOT), BOOT, WALL) == b""


def test_one_limit_is_one_policy() -> None:
    verdict = Limiter().admit(1, Limits(None, 5, None), BOOT)
    assert fields(verdict)["RateLimit-Policy"] == '"hour";q=5;w=3600'
    assert fields(verdict)["RateLimit"] == '"hour";r=4;t=3600'


def test_a_problem() -> None:
    answer = answers.REFUSALS[Outcome.unknown].encode(b"abc", b"X-A: b\r\n", to_head=False)
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in lines)
    assert line == "HTTP/1.1 401 Unauthorized"
    assert headers.pop("Date").endswith("GMT")
    assert headers == {
        "Content-Type": "application/problem+json",
        "Cache-Control": "no-store",
        "WWW-Authenticate": "ApiKey",
        "X-Request-ID": "abc",
        "Content-Length": str(len(body)),
        "X-A": "b",
    }
    assert b" " not in body.replace(b"Invalid or missing API key", b"")
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Invalid or missing API key",
        "status": 401,
        "code": "key_invalid",
        "request_id": "abc",
    }


def test_an_answer_to_head_has_the_length_and_no_body() -> None:
    answer = answers.NOT_FOUND.encode(b"abc", b"", to_head=True)
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in answer


def test_unavailable_says_when_to_come_back() -> None:
    assert b"\r\nRetry-After: 2\r\n" in answers.REFUSALS[Outcome.not_ready].encode(b"", b"", to_head=False)
