"""From deactivating a key to its first refusal, while another client uses it without pause."""

from __future__ import annotations

import json
import selectors
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.load import UNLIMITED
from tests.load.report import Section, milliseconds
from tests.load.servers import KEY_HEADER, PATH
from tests.load.stack import Bench


class Connection:
    """A kept-alive connection of a client that sends one request at a time."""

    def __init__(self, url: str, secret: str) -> None:
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port), 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._secret = secret
        self._buffer = b""

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        """Sends a request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{KEY_HEADER}: {self._secret}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.socket.sendall(head.encode() + b"\r\n" + body)

    def receive(self) -> int | None:
        """Reads what has come: the status when the answer is complete."""
        data = self.socket.recv(65536)
        assert data, "the connection was closed"
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return None
        self._buffer = b""
        return int(head[9:12])

    def answer(self) -> int:
        """The status of the answer, when it is complete."""
        while (status := self.receive()) is None:
            pass
        return status


def measure(bench: Bench, *, times: int) -> Section:
    """Deactivates a key and activates it again, so many times."""
    key = bench.owner.create_key("refused", limits=UNLIMITED)
    owner = Connection(bench.stack.url, _secret(bench))
    found = [_once(bench, owner, key) for _ in range(times)]
    section = Section(f"Deactivating a key, {times} times", ("from", "to", "p50", "p99", "worst"))
    section.rows += [
        ("PUT sent", "first refusal", *milliseconds(refused - sent for sent, _, refused, _ in found)),
        ("PUT sent", "its answer", *milliseconds(answered - sent for sent, answered, _, _ in found)),
    ]
    late = sum(late for *_, late in found)
    p50, p99, worst = section.rows[0][2:]
    section.promises.append(
        (
            f"deactivate → first refused, {times} times (PUT sent to first refusal)",
            "100 ms p99, 1 s worst",
            f"p50 **{p50}**, p99 **{p99}**, worst **{worst}**; {late or 'none'} let through after the call had returned",
        )
    )
    section.notes.append(
        "Another client sends requests with the key without pause. "
        f"Requests let through that were sent after the PUT's answer had come back: **{late}**."
    )
    if late:
        section.problems.append(
            f"{late} requests were let through after the call that deactivated the key had returned"
        )
    return section


def _once(bench: Bench, owner: Connection, key: dict[str, Any]) -> tuple[float, float, float, int]:
    """When the PUT was sent and answered, the key first refused, and how many requests were let through too late."""
    path = f"/api/v1/api-keys/{key['id']}"
    caller = Connection(bench.stack.url, key["key"])
    for _ in range(3):
        caller.send("GET", PATH)
        assert caller.answer() == 200
    answered = refused = 0.0
    late = 0
    caller.send("GET", PATH)
    asked = sent = time.monotonic()
    owner.send("PUT", path, b'{"is_active": false}')
    with selectors.DefaultSelector() as both:
        both.register(owner.socket, selectors.EVENT_READ)
        both.register(caller.socket, selectors.EVENT_READ)
        while not (answered and refused):
            ready = [event[0].fileobj for event in both.select(10)]
            assert ready, "no answer within 10 s"
            # The PUT's first: what is sent after this moment must be refused.
            if owner.socket in ready and (status := owner.receive()) is not None:
                assert status == 200, f"the PUT was answered with {status}"
                answered = time.monotonic()
            if not refused and caller.socket in ready and (status := caller.receive()) is not None:
                assert status in {200, 403}, f"a request was answered with {status}"
                if status == 403:
                    refused = time.monotonic()
                else:
                    late += bool(answered and asked > answered)
                    asked = time.monotonic()
                    caller.send("GET", PATH)
    caller.socket.close()
    owner.send("PUT", path, json.dumps({"is_active": True}).encode())
    assert owner.answer() == 200
    return sent, answered, refused, late


def _secret(bench: Bench) -> str:
    return str(bench.owner.create_key("command", limits=UNLIMITED)["key"])


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
