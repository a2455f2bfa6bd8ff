"""Turns: each owner has its part, waits for it in order, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from shared.errors import Unavailable
from shared.turns import Turns

pytestmark = pytest.mark.anyio


class Work:
    """Requests that take a turn and hold it until they are told to end."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.working: list[int] = []
        self.end = asyncio.Event()

    def start(self, owner_id: int) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(owner_id))

    async def _run(self, owner_id: int) -> None:
        async with self._turns.of(owner_id):
            self.working.append(owner_id)
            await self.end.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_owner_has_its_part_and_no_more() -> None:
    turns = Turns(2, 60)
    work = Work(turns)
    running = [work.start(owner) for owner in (1, 1, 1, 2, 1, 2, 2)]
    await settle()
    assert sorted(work.working) == [1, 1, 2, 2]
    work.end.set()
    await asyncio.gather(*running)
    assert len(work.working) == 7
    assert turns._owners == {}


async def test_who_waits_too_long_is_told_to_come_again() -> None:
    turns = Turns(1, 0.01)
    work = Work(turns)
    first = work.start(1)
    await settle()
    with pytest.raises(Unavailable) as refused:
        await work.start(1)
    assert refused.value.headers["Retry-After"] == "2"
    work.end.set()
    await first
    await work.start(1)
    assert turns._owners == {}


async def test_who_leaves_while_it_waits_or_works_takes_its_turn_along() -> None:
    turns = Turns(1, 60)
    work = Work(turns)
    first, second, third = (work.start(1) for _ in range(3))
    await settle()
    second.cancel()
    await settle()
    first.cancel()
    await settle()
    assert work.working == [1, 1]
    work.end.set()
    await third
    await asyncio.gather(first, second, return_exceptions=True)
    assert turns._owners == {}
