"""A proxy to Kafka whose answers to producers come late: what goes to the broker goes at once, what comes back waits.

A message of Kafka's protocol is its length (4 bytes), then in a request the kind and version (2 bytes each) and a number
(4 bytes), in an answer that number. Answers of a connection keep their order.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PRODUCERS = {0: "Produce", 22: "InitProducerId", 24: "AddPartitionsToTxn", 26: "EndTxn"}
_ADD, _BROKERS_ONLY = 24, 4
_END = 26


class Delay:
    """From its `port` to the server's. `seconds` may be changed at any time; it holds for what comes from then on.

    `ended`: by transactional id, how many requests to end a transaction were answered late.
    """

    def __init__(self, target: int) -> None:
        self.seconds = 0.0
        self.port = 0
        self.delayed = 0
        self.ended: Counter[str] = Counter()
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
        late: set[bytes] = set()
        with suppress(OSError, asyncio.IncompleteReadError):
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
            there = asyncio.ensure_future(self._ask(reader, server, late))
            try:
                await self._answer(answers, writer, late)
            finally:
                there.cancel()
                server.close()
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, late: set[bytes]) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while message := await _message(reader):
                kind = int.from_bytes(message[4:6], "big")
                if self.seconds and _is_a_producer_s(message):
                    late.add(message[8:12])
                    if kind == _END:
                        self.ended[_transactional_id(message)] += 1
                server.write(message)
                await server.drain()
        server.close()

    async def _answer(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter, late: set[bytes]) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, message = await waiting.get()
                await asyncio.sleep(due - self._loop.time())
                client.write(message)
                await client.drain()

        delivering = asyncio.ensure_future(deliver())
        try:
            while message := await _message(answers):
                delay = self.seconds if message[4:8] in late else 0.0
                self.delayed += delay > 0
                late.discard(message[4:8])
                waiting.put_nowait((self._loop.time() + delay, message))
        finally:
            delivering.cancel()


def _is_a_producer_s(message: bytes) -> bool:
    """A broker asks its own address too, whether partitions are in a transaction: by versions that no client uses."""
    kind, version = int.from_bytes(message[4:6], "big"), int.from_bytes(message[6:8], "big")
    return kind in _PRODUCERS and not (kind == _ADD and version >= _BROKERS_ONLY)


def _transactional_id(message: bytes) -> str:
    """Of a request to end a transaction, as aiokafka sends it (versions 0 to 2): behind the client's id."""
    at = 14 + int.from_bytes(message[12:14], "big")
    return message[at + 2 : at + 2 + int.from_bytes(message[at : at + 2], "big")].decode()


async def _message(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length, "big"))


@contextmanager
def delaying(target: int) -> Iterator[Delay]:
    """A proxy to a port of this machine, as long as the context lives."""
    delay = Delay(target)
    delay.start()
    try:
        yield delay
    finally:
        delay.stop()
