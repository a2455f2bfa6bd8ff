"""The sample's support desk: tickets are opened, answered and resolved. What is open says what to do next, so it needs no
memory of its own, and a few are open at any time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx2

from deploy.sample.scene import REPLIES, SUBJECTS

_API = "/api/v1/tickets"
_OPEN_LEAST, _OPEN_MOST = 3, 7
_FIRST_STEPS, _FIRST_PAUSE = 16, 0.5
_PAUSE = 60.0


async def work(http: httpx2.AsyncClient) -> None:
    """For ever, a step a minute; quicker at first where there are no tickets yet. Failures are tried again."""
    quick = _FIRST_STEPS
    while True:
        try:
            if not quick or (await _list(http, size=1))["total"] >= _FIRST_STEPS // 2:
                quick = 0
            await _step(http)
        except httpx2.HTTPError:
            quick = 0
        quick = max(0, quick - 1)
        await asyncio.sleep(_FIRST_PAUSE if quick else random.expovariate(1 / _PAUSE))


async def _step(http: httpx2.AsyncClient) -> None:
    listed = (await _list(http, size=100, status="open"))["tickets"]
    ours = [ticket for ticket in listed if ticket["subject"] in SUBJECTS]
    if len(ours) < _OPEN_LEAST or (len(ours) < _OPEN_MOST and random.random() < 0.4):
        await _send(http, "", {"subject": random.choice(SUBJECTS), "body": "Please have a look at this."})
        return
    ticket = random.choice(ours)["id"]
    if random.random() < 0.6:
        await _send(http, f"/{ticket}/replies", {"body": random.choice(REPLIES)})
    else:
        await _send(http, f"/{ticket}/resolve", {})


async def _list(http: httpx2.AsyncClient, **query: str | int) -> Any:
    answer = await http.get(_API, params=query)
    return answer.raise_for_status().json()


async def _send(http: httpx2.AsyncClient, path: str, body: dict[str, str]) -> None:
    (await http.post(_API + path, json=body)).raise_for_status()
