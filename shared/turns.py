"""Turns at what all share: no owner's requests, however many and slow, take more than its part of it at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shared.errors import Unavailable


@dataclass
class _Owner:
    free: asyncio.Semaphore
    present: int = field(default=0)


class Turns:
    """At most `at_once` turns of one owner at a time; others of it wait up to `wait` seconds, then they are refused."""

    def __init__(self, at_once: int, wait: float) -> None:
        self._at_once = at_once
        self._wait = wait
        self._owners: dict[int, _Owner] = {}

    @asynccontextmanager
    async def of(self, owner_id: int) -> AsyncIterator[None]:
        """A turn of the owner. `Unavailable` (503, `Retry-After`) when its others take too long."""
        owner = self._owners.setdefault(owner_id, _Owner(asyncio.Semaphore(self._at_once)))
        owner.present += 1
        try:
            try:
                async with asyncio.timeout(self._wait):
                    await owner.free.acquire()
            except TimeoutError as error:
                raise Unavailable("Too many requests of this owner are being worked on.") from error
            try:
                yield
            finally:
                owner.free.release()
        finally:
            owner.present -= 1
            if not owner.present:
                del self._owners[owner_id]
