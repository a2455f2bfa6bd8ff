"""Traffic for a stack that nobody uses yet: the scene's clients call through the edge, each with a key of its own, as long as
this process runs.

`python -m deploy.sample.traffic KEYS_FILE INTERNAL_PORT`, with KEYLEDGER_URL and KEYLEDGER_API_KEY in the environment.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import sys
import time
from pathlib import Path

import httpx2
import structlog

from deploy.local.errors import StackError
from deploy.sample import desk
from deploy.sample.keys import Keys, SampleKey
from deploy.sample.scene import CLIENTS, DESK, Call, Client
from shared.process import run, until_signalled
from shared.telemetry import Check, configure_logging

_TIDE_SECONDS = 900.0
"""Traffic rises and falls by half in this time, as it does over a day."""

_REFUSED = frozenset({401, 403})
_REFUSED_PAUSE = 5
"""Who is refused calls so much more seldom."""

_BURST_PAUSE = 0.1
_AWAY_SECONDS = 2.0
_TIMEOUT = 15.0
_IDS = 400
_log = structlog.get_logger()


class Traffic:
    """All clients of the scene."""

    def __init__(self, url: str, first_key: str, keys_file: Path) -> None:
        self._url = url
        self._first = self._http(first_key)
        self._keys = Keys(keys_file, self._first)
        self._made = False

    def check(self) -> Check:
        """Ready when every client has its key."""
        return Check(self._made, "" if self._made else "making the sample's keys")

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. Raises StackError when the keys can't be made."""
        held = [(client, await self._keys.of(client)) for client in CLIENTS]
        support = await self._keys.of(DESK)
        self._made = True
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._calls(client, key)) for client, key in held]
            tasks.append(group.create_task(desk.work(self._http(support.secret))))
            await stop.wait()
            for task in tasks:
                task.cancel()

    def _http(self, secret: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self._url, headers={"X-API-Key": secret}, timeout=_TIMEOUT)

    async def _calls(self, client: Client, key: SampleKey) -> None:
        http = self._http(key.secret)
        seldom = 1
        while True:
            await asyncio.sleep(seldom * _gap(client))
            try:
                await self._end(client, key)
                status = await _burst(http, client)
            except httpx2.HTTPError as error:
                _log.warning("a call had no answer", client=client.name, error=repr(error))
                await asyncio.sleep(_AWAY_SECONDS)
            else:
                seldom = _REFUSED_PAUSE if status in _REFUSED else 1

    async def _end(self, client: Client, key: SampleKey) -> None:
        """Deactivate the key when its time has come; its client goes on and is refused."""
        if client.deactivated_after is None or key.ended or time.time() < key.made_at + client.deactivated_after:
            return
        await self._keys.deactivate(key)


async def _burst(http: httpx2.AsyncClient, client: Client) -> int:
    """The client's calls in a row; the status of the last."""
    status = 0
    for number in range(client.burst):
        if number:
            await asyncio.sleep(_BURST_PAUSE)
        [call] = random.choices(client.calls, [each.weight for each in client.calls])
        status = await _call(http, call)
    return status


async def _call(http: httpx2.AsyncClient, call: Call) -> int:
    query: dict[str, str | int] = {}
    if call.seconds:
        query["delay"] = f"{min(4.0, random.lognormvariate(math.log(call.seconds), 0.5)):.3f}"
    if (chance := random.random()) < call.missing:
        query["status"] = 404
    elif chance < call.missing + call.failing:
        query["status"] = 500
    body = {"note": "sample"} if call.method in ("POST", "PUT") else None
    answer = await http.request(call.method, call.path.format(id=random.randint(1, _IDS)), params=query, json=body)
    return answer.status_code


def _gap(client: Client) -> float:
    """Seconds until the client's next round: a machine's bursts come by the clock, people's calls by chance."""
    mean = 60 * client.burst / client.per_minute
    if client.burst > 1:
        return mean * random.uniform(0.9, 1.1)
    return random.expovariate(_tide(time.time()) / mean)


def _tide(now: float) -> float:
    return 1 + 0.5 * math.sin(2 * math.pi * now / _TIDE_SECONDS)


async def _main(keys_file: Path, internal: int) -> None:
    traffic = Traffic(os.environ["KEYLEDGER_URL"], os.environ["KEYLEDGER_API_KEY"], keys_file)
    await until_signalled(("127.0.0.1", internal), {"keys": traffic.check}, traffic.run)


def main() -> None:
    """Calls until SIGTERM; exit code 1, with the reason on stderr, when the keys can't be made."""
    configure_logging("info", service="sample", role="traffic")
    try:
        run(_main(Path(sys.argv[1]), int(sys.argv[2])))
    except StackError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
