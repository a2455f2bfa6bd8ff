"""Waiting in tests: for a condition, with a deadline, and never for a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

_INTERVAL = 0.02


async def eventually(
    predicate: Callable[[], T | Awaitable[T | None] | None], deadline: float = 30.0, interval: float = _INTERVAL
) -> T:
    """The predicate's first truthy value. It may raise while the condition does not hold yet.

    Raises AssertionError with its last value or exception after `deadline` seconds.
    """
    end = time.monotonic() + deadline
    while True:
        value, error = await _attempt(predicate)
        if value:
            return cast("T", value)
        if time.monotonic() > end:
            raise _too_late(deadline, value, error) from error
        await asyncio.sleep(interval)


def eventually_sync(predicate: Callable[[], T | None], deadline: float = 30.0, interval: float = _INTERVAL) -> T:
    """`eventually` for tests without an event loop."""
    end = time.monotonic() + deadline
    while True:
        value, error = None, None
        try:
            value = predicate()
        except Exception as raised:
            error = raised
        if value:
            return value
        if time.monotonic() > end:
            raise _too_late(deadline, value, error) from error
        time.sleep(interval)


async def _attempt(predicate: Callable[[], T | Awaitable[T | None] | None]) -> tuple[T | None, Exception | None]:
    try:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
    except Exception as error:
        return None, error
    return cast("T", value), None


def _too_late(deadline: float, value: object, error: Exception | None) -> AssertionError:
    last = f"it raised {error!r}" if error else f"its last value was {value!r}"
    return AssertionError(f"the condition did not hold within {deadline:g} s: {last}")
