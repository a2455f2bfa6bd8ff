"""The examples that stand before and behind an edge, with a real one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.edge.domain import KeyState
from services.edge.identity import Identities
from shared.events.keys import Limits
from shared.ids import new_secret
from tests.integration.edge.upstream import Upstream, then_close
from tests.integration.edge.world import UNLIMITED, World
from tests.support.eventually import eventually_sync
from tests.support.service import free_port

EXAMPLES = Path(__file__).parents[3] / "examples"
UPSTREAMS = {
    "python": [sys.executable, "-P", str(EXAMPLES / "upstream.py")],
    "node": ["node", str(EXAMPLES / "upstream.mjs")],
}
Sleep = Callable[[float], None]


def load(name: str) -> ModuleType:
    spec = util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


client_module = load("client")


# The client


def client(world: World, key: str, sleep: Sleep, patience: float = 70.0) -> Any:
    return client_module.Client(f"http://127.0.0.1:{world.port}", key, patience=patience, sleep=sleep)


def never(seconds: float) -> None:
    pytest.fail(f"it wanted to wait for {seconds} s")


def statuses(world: World, path: str) -> list[int]:
    return [record.status_code for record in world.settled(path)]


def test_a_client_waits_as_long_as_a_limit_asks_for(world: World) -> None:
    waits: list[float] = []
    secret = new_secret("test")
    world.state(900, secret, 1, limits=Limits(minute=1, hour=1000, day=10000))

    def sleep(seconds: float) -> None:
        """Instead of waiting out the minute, the key's limit is raised."""
        waits.append(seconds)
        world.state(900, secret, 2, limits=UNLIMITED)

    caller = client(world, secret.text, sleep)
    assert caller.request("POST", "/echo/limited", {"a": 1}).status == 200
    answer = caller.request("POST", "/echo/limited", {"a": 2})
    assert answer.status == 200
    [waited] = waits
    assert 50 < waited < 62
    assert statuses(world, "/echo/limited") == [200, 429, 200]


def test_a_client_does_not_wait_longer_than_it_has_patience(world: World) -> None:
    caller = client(world, world.key(Limits(minute=None, hour=None, day=1)), never)
    assert caller.request("GET", "/echo/daily").status == 200
    answer = caller.request("GET", "/echo/daily")
    assert (answer.status, answer.code) == (429, "rate_limited")
    assert int(answer.headers["retry-after"]) > 3600


def test_a_client_comes_back_when_the_edge_is_ready(make: Callable[..., World]) -> None:
    world = make()
    key = world.key()
    world.start()
    eventually_sync(lambda: world.internal_any("/readyz"))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        world.ready()
        world.until_ready()

    answer = client(world, key, sleep).request("POST", "/echo/early", {})
    assert answer.status == 200
    assert len(waits) == 1 and waits[0] >= 2
    assert statuses(world, "/echo/early") == [200]


def test_a_client_repeats_what_may_be_repeated_and_nothing_else(world: World, upstream: Upstream, key: str) -> None:
    waits: list[float] = []
    caller = client(world, key, waits.append)
    for method in ("GET", "PUT", "DELETE"):
        answer = caller.request(method, "/nobody/x", {} if method == "PUT" else None)
        assert (answer.status, answer.code) == (502, "bad_gateway")
    assert statuses(world, "/nobody/x") == [502] * 3 * client_module.ATTEMPTS
    assert len(waits) == 3 * (client_module.ATTEMPTS - 1)
    assert all(wait <= client_module.FIRST_WAIT * 2**n for n, wait in enumerate(waits[: client_module.ATTEMPTS - 1]))
    waits.clear()
    assert caller.request("POST", "/nobody/y", {}).status == 502
    assert caller.request("GET", "/nowhere").status == 404
    assert client(world, "kl_live_nonsense", waits.append).request("GET", "/echo/x").status == 401
    upstream.behaviours["/echo/away"] = then_close(
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 23\r\n\r\n"
        + b'{"code": "unavailable"}'
    )
    assert caller.request("POST", "/echo/away", {}).status == 503
    assert waits == [], "it may have been done"
    assert caller.request("PUT", "/echo/away", {}).status == 503
    assert all(wait >= 1 for wait in waits) and len(waits) == client_module.ATTEMPTS - 1


def test_a_client_gives_up_on_a_server_that_is_not_there() -> None:
    caller = client_module.Client(f"http://127.0.0.1:{free_port()}", "kl_live_x", sleep=lambda _: None)
    with pytest.raises(ConnectionRefusedError):
        caller.request("GET", "/")


# The upstreams

ROUTES = """
[routes.reports]
prefix = "/reports"
upstream = "http://127.0.0.1:{port}"

[routes.other]
prefix = "/other"
upstream = "http://127.0.0.1:{port}"
"""


@pytest.fixture(scope="module", params=UPSTREAMS)
def behind(
    request: pytest.FixtureRequest, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, str]]:
    """An edge with the example as the upstream of two routes, of which it is told one; and the example's address."""
    command = UPSTREAMS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip("no Node.js here")
    port = free_port()
    world = World(tmp_path_factory.mktemp("behind"), upstream, ROUTES.format(port=port))
    world.ready()
    world.start().until_ready()
    with _running(command, EDGE=f"http://127.0.0.1:{world.port}", ROUTE="reports", PORT=str(port)):
        address = f"http://127.0.0.1:{port}"
        eventually_sync(lambda: httpx2.get(address).status_code == 401)
        yield world, address
    world.stop()


@contextmanager
def _running(command: Sequence[str], **variables: str) -> Iterator[None]:
    process = subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_an_upstream_believes_the_edge(behind: tuple[World, str]) -> None:
    world, _ = behind
    answer = world.get("/reports/x", world.key(permissions=("write", "read"), owner_id=1))
    assert answer.status == 200
    assert answer.json == {"owner_id": 1, "key_id": answer.json["key_id"], "permissions": ["read", "write"]}
    assert answer.json["key_id"] == world.record(answer.header("x-request-id")).key_id
    assert world.get("/other/x", world.key()).status == 401, "a token for another route"


def test_an_upstream_believes_nobody_else(behind: tuple[World, str]) -> None:
    world, address = behind
    now = int(time.time())
    good = {
        "iss": "keyledger",
        "sub": "owner-1",
        "aud": "route:reports",
        "iat": now,
        "exp": now + 60,
        "key_id": 7,
        "owner_id": 1,
        "permissions": [],
    }
    kid = Identities(world.identity_key)._headers["kid"]

    def token(key: Any = world.identity_key, algorithm: str = "EdDSA", head: Any = None, **claims: Any) -> str:
        content = {name: value for name, value in (good | claims).items() if value is not None}
        return jwt.encode(content, key, algorithm=algorithm, headers=head or {"kid": kid})

    http = httpx2.Client(base_url=address)

    def status(*tokens: str) -> int:
        return http.get("/", headers=[("Keyledger-Identity", each) for each in tokens]).status_code

    genuine = token()
    head, body, signature = genuine.split(".")
    assert status(genuine) == 200
    bad = {
        "nothing": (),
        "no token": ("x",),
        "empty": ("",),
        "two": (genuine, genuine),
        "another's key": (token(Ed25519PrivateKey.generate()),),
        "an unknown key": (token(head={"kid": "unknown"}),),
        "no key named": (jwt.encode(good, world.identity_key, algorithm="EdDSA"),),
        "unsigned": (jwt.encode(good, "", algorithm="none", headers={"kid": kid}),),
        "signed by a password": (token("k" * 32, "HS256"),),
        "cut": (f"{head}.{body}.",),
        "changed": (f"{head}.{body[:-4]}AAAA.{signature}",),
        "expired": (token(exp=now - 31),),
        "without an end": (token(exp=None),),
        "from the future": (token(iat=now + 120, exp=now + 180),),
        "of another issuer": (token(iss="somebody"),),
        "for another route": (token(aud="route:other"),),
        "for the platform": (token(aud="keyledger"),),
        "for nobody": (token(aud=None),),
    }
    assert {name: status(*tokens) for name, tokens in bad.items()} == dict.fromkeys(bad, 401)
    asked = world.metric("keyledger_edge_unmetered_total", reason="public")
    started = time.monotonic()
    for _ in range(50):
        assert status(token(head={"kid": str(random.random())})) == 401
    took = time.monotonic() - started
    assert world.metric("keyledger_edge_unmetered_total", reason="public") - asked <= took + 1
    assert status(genuine) == 200
    http.close()


def test_an_upstream_learns_a_new_key(behind: tuple[World, str]) -> None:
    world, address = behind
    key = world.key()
    old = Identities(world.identity_key)
    assert world.get("/reports/x", key).status == 200
    world.signal(signal.SIGTERM)
    world.wait()
    world.identity_key = Ed25519PrivateKey.generate()
    pem = world.identity_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (world.data / "identity.pem").write_bytes(pem)
    world.start().until_ready()
    eventually_sync(lambda: world.get("/reports/x", key).status == 200)
    state = KeyState(1, 1, epoch=1, version=1, status="active")
    withdrawn = old.token(state, "route:reports", time.time_ns()).decode()
    assert httpx2.get(address, headers={"Keyledger-Identity": withdrawn}).status_code == 401
