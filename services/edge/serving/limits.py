"""What an answer tells of the limits."""

from __future__ import annotations

from functools import lru_cache

from services.edge.clock import SECOND
from services.edge.domain import Limits, Verdict
from services.edge.limiter import WINDOWS


def limit_fields(verdict: Verdict, boot_ns: int, wall_ns: int) -> bytes:
    """The header lines that tell of the limits (API documentation, Rate Limits; draft-ietf-httpapi-ratelimit-headers-11).

    Empty for a key without limits. Who waits for X-RateLimit-Reset, whole seconds rounded up, comes late enough.
    """
    if verdict.limit is None:
        return b""
    wait_ns = max(0, verdict.reset_ns - boot_ns)
    wait, remaining = -(wait_ns // -SECOND), str(verdict.remaining)
    fields = (
        f"{_fixed(verdict.limits, verdict.shown)}{remaining};t={wait}\r\nX-RateLimit-Remaining: {remaining}\r\n"
        f"X-RateLimit-Reset: {-((wall_ns + wait_ns) // -SECOND)}\r\n"
    )
    if not verdict.allowed:
        fields += f"Retry-After: {max(1, wait)}\r\n"
    return fields.encode()


@lru_cache(maxsize=4096)
def _fixed(limits: Limits, shown: str) -> str:
    """What they tell that no request changes, up to where `shown`'s remaining comes."""
    bounds = (limits.minute, limits.hour, limits.day)
    limited = {
        name: (bound, span // SECOND)
        for (name, span, _), bound in zip(WINDOWS, bounds, strict=True)
        if bound is not None
    }
    policies = ", ".join(f'"{name}";q={bound};w={seconds}' for name, (bound, seconds) in limited.items())
    return f'X-RateLimit-Limit: {limited[shown][0]}\r\nRateLimit-Policy: {policies}\r\nRateLimit: "{shown}";r='
