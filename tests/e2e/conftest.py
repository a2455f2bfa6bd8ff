"""One stack for all end-to-end tests, with an upstream of a user's own behind a route."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.keys.bootstrap import create_owner
from services.keys.settings import Settings
from shared.ids import new_secret
from tests.e2e.client import Client
from tests.e2e.load import UNLIMITED, Load, steady
from tests.integration.edge.upstream import Upstream
from tests.support import containers
from tests.support.eventually import eventually_sync
from tests.support.stack import CONTAINERS, LocalStack, Stack, local_stack

_ROUTES = """
[routes.echo]
prefix = "/echo"
upstream = "{upstream}"

[routes.reports]
prefix = "/reports"
upstream = "{upstream}"
permission = "reports:read"

[routes.open]
prefix = "/open"
upstream = "{upstream}"
public = true

[routes.nobody]
prefix = "/nobody"
upstream = "http://127.0.0.1:1"
"""


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    server = Upstream(host=containers.HOST) if CONTAINERS else Upstream()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Stack]:
    directory: Path = tmp_path_factory.mktemp("e2e")
    routes = directory / "routes.toml"
    routes.write_text(_ROUTES.format(upstream=upstream.origin))
    if CONTAINERS:
        with containers.container_stack(directory, routes) as running:
            yield running
    else:
        with local_stack(directory / "stack", "--routes", str(routes)) as running:
            yield running


@pytest.fixture
def without_containers(stack: Stack) -> LocalStack:
    """The stack where it is one that `keyledger up` runs."""
    if not isinstance(stack, LocalStack):
        pytest.skip("`keyledger up`, `status` and `<dir>/env` are of the stack without containers")
    return stack


@pytest.fixture
def admin(stack: Stack) -> Iterator[Client]:
    """The first owner's key."""
    with Client(stack.url, stack.env["KEYLEDGER_API_KEY"]) as client:
        yield client


@pytest.fixture
def owner(stack: Stack) -> Iterator[Client]:
    """A fresh owner's first key, without limits: made as the `keyledger` command makes it, without its start-up time."""
    secret = new_secret("live")
    settings = Settings(database=stack.env["KEYLEDGER_KEYS_DATABASE"], kafka=stack.env["KEYLEDGER_KAFKA"])
    asyncio.run(
        create_owner(settings, name="an owner", secret=secret, command_id=uuid.uuid4(), admin=False, limited=False)
    )
    with Client(stack.url, secret.text) as client:
        eventually_sync(lambda: client.get("/echo/known").status_code == 200, 120)
        yield client


@pytest.fixture
def loads(owner: Client) -> Iterator[list[Load]]:
    """Three keys without limits under a steady light load, until each is told that it is over."""
    running = [Load(owner.url, owner.create_key(f"load {n}", limits=UNLIMITED), ("/echo/a",)) for n in range(3)]
    with steady(running):
        yield running
