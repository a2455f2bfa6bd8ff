"""A TCP proxy whose answers come late: what goes to the server goes at once, what comes back waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BLOCK = 65536


class Delay:
    """From its `port` to the server's. `seconds` may be changed at any time; it holds for what comes from then on."""

    def __init__(self, target: int) -> None:
        self.seconds = 0.0
        self.port = 0
        self.delayed = 0
        self._target = target
        self._loop = asyncio.new_event_loop()

    def start(self) -> None:
        begun = threading.Event()

        async def begin() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            begun.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.create_task(begin())
            self._loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        assert begun.wait(10)

    def stop(self) -> None:
        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
            there = asyncio.ensure_future(self._copy(reader, server))
            await self._back(answers, writer)
            there.cancel()
            server.close()
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await reader.read(_BLOCK):
                writer.write(block)
                await writer.drain()
            writer.close()

    async def _back(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, block = await waiting.get()
                await asyncio.sleep(due - self._loop.time())
                client.write(block)
                await client.drain()

        delivering = asyncio.ensure_future(deliver())
        try:
            while block := await answers.read(_BLOCK):
                self.delayed += self.seconds > 0
                waiting.put_nowait((self._loop.time() + self.seconds, block))
        finally:
            delivering.cancel()


@contextmanager
def delaying(target: int) -> Iterator[Delay]:
    """A proxy to a port of this machine, as long as the context lives."""
    delay = Delay(target)
    delay.start()
    try:
        yield delay
    finally:
        delay.stop()
