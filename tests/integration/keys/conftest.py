"""The keys service as real processes, a usage service to ask, and owners with a key."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from services.keys import bootstrap
from services.keys.settings import Settings
from shared.events.topics import EDGE_STATUS, KEY_USAGE
from shared.ids import Secret, new_secret
from tests.support.service import Service, service
from tests.support.stack import Servers


class Usage(BaseHTTPRequestHandler):
    """A usage service that answers what it was told to (None: 503), and remembers what it was asked."""

    answer: Any = None
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012 - there is one usage service

    def do_GET(self) -> None:
        type(self).asked.append((self.path, self.headers["Keyledger-Identity"]))
        content = json.dumps(self.answer).encode()
        self.send_response(503 if self.answer is None else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: object = "-", size: object = "-") -> None:  # type: ignore[missing-override-decorator]
        """Nothing on standard error."""


@dataclass(frozen=True)
class Owner:
    """An owner, its first key, and a caller that has that key."""

    id: int
    key_id: int
    secret: Secret
    client: httpx2.Client


@pytest.fixture(scope="package")
def usage_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Usage)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()


@pytest.fixture(autouse=True)
def usage(usage_server: str) -> type[Usage]:
    """The usage service, down until a test gives it an answer."""
    Usage.answer = None
    Usage.asked.clear()
    return Usage


@pytest.fixture(scope="package")
def keys(servers: Servers, usage_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    environment = {"KEYLEDGER_KEYS_USAGE_URL": usage_server}
    directory = tmp_path_factory.mktemp("keys")
    with service("keys", servers, directory, environment=environment, topics=[KEY_USAGE, EDGE_STATUS]) as running:
        yield running


def make_owner(keys: Service, *, admin: bool = False, permissions: tuple[str, ...] = ()) -> Owner:
    """A new owner; its caller has the permissions of an identity token, whatever the key has."""
    secret = new_secret("live")
    owner_id, key_id = asyncio.run(
        bootstrap.create_owner(
            keys.settings(Settings), name="Ada", secret=secret, command_id=uuid.uuid4(), admin=admin, limited=True
        )
    )
    granted = ("admin", *permissions) if admin else permissions
    return Owner(owner_id, key_id, secret, keys.client(owner_id, key_id, *granted))


def make_key(keys: Service, owner_id: int) -> int:
    """Another key of the owner, made on the server itself."""
    secret, command_id = new_secret("live"), uuid.uuid4()
    made = bootstrap.create_key(
        keys.settings(Settings), owner_id=owner_id, name="x", secret=secret, command_id=command_id
    )
    return asyncio.run(made)


@pytest.fixture
def owner(keys: Service) -> Iterator[Owner]:
    made = make_owner(keys)
    with made.client:
        yield made


@pytest.fixture
def admin(keys: Service) -> Iterator[Owner]:
    made = make_owner(keys, admin=True)
    with made.client:
        yield made
