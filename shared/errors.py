"""Errors that a caller may see: a stable `code`, an HTTP status, a text without internals; `shared.http` answers them."""

from __future__ import annotations

from typing import Any


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it a problem
    """A problem detail (RFC 9457). `extra` goes into the body, `headers` onto the answer."""

    status = 500
    code = "internal"
    title = "Internal server error"

    def __init__(self, detail: str | None = None, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra


class BadRequest(Problem):
    """The request can't be read as HTTP or JSON."""

    status, code, title = 400, "bad_request", "Bad request"


class Unauthenticated(Problem):
    """No identity, or one that does not verify."""

    status, code, title = 401, "key_invalid", "Invalid or missing API key"

    def __init__(self, detail: str | None = None, **extra: Any) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "ApiKey"}, **extra)


class PermissionMissing(Problem):
    """The caller's key does not carry what the request needs."""

    status, code, title = 403, "permission_missing", "The API key lacks a permission"


class Inactive(Problem):
    """The caller's key is deactivated, or its owner suspended: it may be good again."""

    status, code, title = 403, "key_inactive", "API key is inactive"


class NotFound(Problem):
    """It does not exist, or not for this caller."""

    status, code, title = 404, "not_found", "Not found"


class Conflict(Problem):
    """The state does not allow it, or it changed under the caller."""

    status, code, title = 409, "conflict", "Conflict"


class Invalid(Problem):
    """Well-formed, but a value is out of its rules. `errors` lists them: `[{"field", "message"}]`."""

    status, code, title = 422, "invalid", "Invalid request"

    def __init__(self, detail: str | None = None, *, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail, errors=errors or [])


class Unavailable(Problem):
    """A part that the request needs is down; it may come back (`Retry-After`, seconds)."""

    status, code, title = 503, "unavailable", "Temporarily unavailable"

    def __init__(self, detail: str | None = None, *, code: str = "unavailable", retry_after: int = 2) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})
        self.code = code
