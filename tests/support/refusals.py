"""Problems (RFC 9457) as every service answers them, and requests that every one must refuse in the same way."""

from __future__ import annotations

import httpx2

from tests.support.service import REQUEST_ID

MEBIBYTE = 1024 * 1024
JSON = {"Content-Type": "application/json"}

BROKEN_BODIES = {
    "no JSON": b"{",
    "empty": b" ",
    "not UTF-8": b'{"name": "\xff"}',
    "deep": b"[" * 100_000,
}
"""400 bad_request."""

LAST_PAGE = 1_000_000_000
BAD_PAGES = [
    "page=0",
    "page=-1",
    "page=x",
    "page=1.5",
    "page=",
    "size=0",
    "size=101",
    "size=x",
    "size=1e2",
    "page=%00",
    f"page={LAST_PAGE + 1}",
    f"page={2**63}",
    f"page={'9' * 30}",
    f"page=1{'0' * 400}",
]
"""422 invalid."""
BAD_IDS = [
    "0",
    "-1",
    "x",
    "1.0",
    "01",
    "+1",
    " 1",
    "%31%20",
    "9223372036854775808",
    "9" * 400,
    "\u0661",
    "1%00",
]
"""404 not_found."""


def assert_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, object]:
    """Checks form, status and code; the body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = answer.json()
    assert (body["status"], body["code"], body["request_id"]) == (status, code, REQUEST_ID)
    assert set(body) <= {"type", "title", "status", "code", "request_id", "detail", "errors"}
    assert answer.headers["cache-control"] == "no-store"
    return body


def assert_invalid(answer: httpx2.Response, *fields: str) -> None:
    """Checks a 422 that names exactly these fields."""
    body = assert_problem(answer, 422, "invalid")
    errors = body["errors"]
    assert isinstance(errors, list)
    assert [error["field"] for error in errors] == list(fields)
    assert all(set(error) == {"field", "message"} and error["message"] for error in errors)
