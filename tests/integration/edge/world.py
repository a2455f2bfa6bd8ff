"""A real serving process with a real upstream, for tests: keys are put into its replica, its request log is read back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.edge import clock
from services.edge.replica.writer import ReplicaWriter, StateBatch
from services.edge.requestlog.reader import logs
from services.edge.requestlog.writer import Record
from shared.events import CloudEvent, EventData
from shared.events.keys import Hash, Heartbeat, KeyState, Limits, OwnerState
from shared.ids import new_secret
from tests.integration.edge.upstream import Upstream
from tests.support.eventually import eventually_sync
from tests.support.service import free_port

UNLIMITED = Limits(minute=None, hour=None, day=None)
SESSION = "test"


@dataclass
class Response:
    """A response as it came: header names in lower case; `whole` tells whether its body was complete."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    whole: bool = True

    def header(self, name: str) -> str | None:
        values = [value for known, value in self.headers if known == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Raw:
    """A client that sends bytes and repairs nothing."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self._buffer = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> Response:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.partition(": ") for line in lines]
        return Response(int(line.split(" ")[1]), [(name.lower(), value) for name, _, value in pairs])

    def response(self, method: str = "GET") -> Response:
        response = self.head()
        while response.status == 100:
            response = self.head()
        if method == "HEAD" or response.status in {204, 304}:
            return response
        try:
            response.body = self._body(response)
        except ConnectionError:
            response.whole = False
        return response

    def closed(self) -> bool:
        """Whether the server ends the connection without another byte."""
        try:
            return not self._buffer and self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def exactly(self, count: int) -> bytes:
        pieces = [self._buffer]
        have = len(self._buffer)
        while have < count:
            self._buffer = b""
            self._more()
            pieces.append(self._buffer)
            have += len(self._buffer)
        data = b"".join(pieces)
        self._buffer = data[count:]
        return data[:count]

    def skip(self, count: int) -> None:
        """Reads so many bytes and forgets them."""
        left = max(0, count - len(self._buffer))
        self._buffer = self._buffer[count:]
        while left:
            data = self.socket.recv(min(left, 1 << 20))
            if not data:
                raise ConnectionResetError("the server ended the connection")
            left -= len(data)

    def _body(self, response: Response) -> bytes:
        if response.header("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._line(), 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            assert self._line() == b""
            return body
        length = response.header("content-length")
        if length is not None:
            return self.exactly(int(length))
        while True:
            data = self.socket.recv(65536)
            if not data:
                break
            self._buffer += data
        return self._buffer

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("the server ended the connection")
        self._buffer += data


@dataclass
class World:
    """One edge's data directory, its serving process and an upstream that plays all services and the routes' upstreams."""

    data: Path
    upstream: Upstream
    routes: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    port: int = 0
    internal_port: int = 0
    files: int = 0
    """The hard limit of files that the process may have open; 0: this one's."""

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "edge-id").write_text("e" * 32)
        self.identity_key = Ed25519PrivateKey.generate()
        pem = self.identity_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.data / "identity.pem").write_bytes(pem)
        self.writer = ReplicaWriter.open(self.data / "replica", partitions=1, session=SESSION)
        self._offset = 0
        self._keys = 0
        self._process: subprocess.Popen[bytes] | None = None

    # The replica

    def key(self, limits: Limits = UNLIMITED, owner_id: int = 1, **state: Any) -> str:
        """Puts an active key (or what `state` says) into the replica; returns its secret."""
        self._keys += 1
        secret = new_secret("test")
        self.state(self._keys, secret, 1, limits=limits, owner_id=owner_id, **state)
        return secret.text

    def state(self, key_id: int, secret: Any, version: int, **state: Any) -> None:
        values: dict[str, Any] = {
            "status": "active",
            "owner_id": 1,
            "permissions": (),
            "expires_at": None,
            "addresses": (),
            "limits": UNLIMITED,
            "hashes": (Hash(hash=secret.hash.hex()),),
        }
        self.apply(KeyState(id=key_id, **(values | state)), f"key-{key_id}", version)

    def owner(self, owner_id: int = 1, status: Any = "active", version: int = 1) -> None:
        self.apply(OwnerState(id=owner_id, status=status), f"owner-{owner_id}", version)

    def apply(self, state: EventData, stream: str, version: int) -> None:
        self._write([(stream.encode(), _event(state, version))])

    def beat(self) -> None:
        held = self.writer.meta.held[0]
        self._write([(b"beat-0", _event(Heartbeat(partition=0, position=self._offset + 1, streams=held), None))])

    def ready(self) -> None:
        self.owner()
        self.beat()
        self.writer.declare(ready=True, complete=True)

    # The process

    def start(self) -> World:
        with socket.create_server(("127.0.0.1", self.port), backlog=1024) as listening:
            self.port, self.internal_port = listening.getsockname()[1], free_port()
            os.set_inheritable(listening.fileno(), True)
            self._process = subprocess.Popen(
                [*self._limited(), sys.executable, "-m", "services.edge", "serving"],
                env=os.environ | self.environment(listening.fileno()),
                pass_fds=(listening.fileno(),),
                stdout=(self.data / "out.log").open("ab"),
                stderr=subprocess.STDOUT,
            )
        return self

    def _limited(self) -> tuple[str, ...]:
        # A soft limit below it, as a shell has.
        limits = f"ulimit -Sn {self.files // 2} && ulimit -Hn {self.files}"
        return ("sh", "-c", f'{limits} && exec "$@"', "sh") if self.files else ()

    @contextmanager
    def superseded(self) -> Iterator[None]:
        """Ends the process and starts its successor at once; the former has ended in order when the context has."""
        before = self._process
        assert before is not None
        before.send_signal(signal.SIGTERM)
        # It listens until it has seen the signal.
        eventually_sync(self.start)
        self.until_ready()
        assert before.poll() is None
        yield
        assert before.wait(20) == 0

    def until_ready(self) -> World:
        eventually_sync(self.is_ready_now)
        return self

    def is_ready_now(self) -> bool:
        return bool(json.loads(self.internal_any("/readyz"))["ready"])

    def internal(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.internal_port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def internal_any(self, path: str) -> str:
        """The page, whatever its status."""
        try:
            return self.internal(path)
        except urllib.error.HTTPError as error:
            return error.read().decode()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 20) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGTERM)
            self.wait()
        self.writer.close()

    # What it did

    def records(self) -> list[Record]:
        """All records of all logs, by time of admission."""
        found: list[Record] = []
        for log in logs(self.data / "logs"):
            position = log.start()
            while (batch := log.read(position)).entries or batch.position != position:
                found += [entry.record for entry in batch.entries]
                position = batch.position
        return sorted(found, key=lambda record: record.admitted_ns)

    def record(self, request_id: str | None) -> Record:
        """The one record of a request."""
        (found,) = [record for record in self.records() if record.request_id == request_id]
        return found

    def settled(self, path: str) -> list[Record]:
        return [record for record in self.records() if record.endpoint == path]

    # Requests

    def raw(self) -> Raw:
        return Raw(self.port)

    def get(
        self, path: str, key: str | None = None, method: str = "GET", body: bytes = b"", **headers: str
    ) -> Response:
        """One request on a connection of its own."""
        with self.raw() as client:
            client.send(request(path, key, method, body, **headers))
            return client.response(method)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels."""
        total = 0.0
        for line in self.internal("/metrics").splitlines():
            named, _, value = line.rpartition(" ")
            if named.partition("{")[0] == name and all(f'{k}="{v}"' in named for k, v in labels.items()):
                total += float(value)
        return total

    def environment(self, listening: int) -> dict[str, str]:
        """What the edge's processes read, with the routes that they are pointed to."""
        origin = self.upstream.origin
        if self.routes:
            (self.data / "routes.toml").write_text(self.routes)
        return {
            "KEYLEDGER_KAFKA": "127.0.0.1:1",
            "KEYLEDGER_INTERNAL_PORT": str(self.internal_port),
            "KEYLEDGER_EDGE_DATA": str(self.data),
            "KEYLEDGER_EDGE_SOCKET": str(listening),
            "KEYLEDGER_EDGE_SESSION": SESSION,
            "KEYLEDGER_EDGE_IDENTITY_KEY": str(self.data / "identity.pem"),
            "KEYLEDGER_EDGE_KEYS_URL": origin,
            "KEYLEDGER_EDGE_TICKETS_URL": origin,
            "KEYLEDGER_EDGE_STATS_URL": origin,
            "KEYLEDGER_EDGE_STALE_SECONDS": "3600",
            **({"KEYLEDGER_EDGE_ROUTES": str(self.data / "routes.toml")} if self.routes else {}),
            **self.settings,
        }

    def _write(self, records: list[tuple[bytes | None, bytes | None]]) -> None:
        self._offset += len(records)
        self.writer.apply([StateBatch(0, records, self._offset)], clock.boot_ns())


def request(path: str, key: str | None = None, method: str = "GET", body: bytes = b"", **headers: str) -> bytes:
    """A well-formed request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: edge.test"]
    if key:
        lines.append(f"X-API-Key: {key}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def within(seconds: float, condition: Callable[[], object]) -> float:
    """How long it took until the condition held, in seconds; it must hold within `seconds`."""
    started = time.monotonic()
    eventually_sync(condition, seconds)
    return time.monotonic() - started


def _event(data: EventData, version: int | None) -> bytes:
    event = CloudEvent[EventData](
        id="0",
        source="keys",
        type=data.TYPE,
        time=datetime.now(UTC),
        epoch=1,
        position=1,
        streamversion=version,
        data=data,
    )
    return event.encode()
