"""`up --sample`: a whole stack with an upstream that echoes and clients that call it, and what it makes of a user's routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from deploy.local import routes
from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.sample.scene import CLIENTS, DESK, SUBJECTS
from services.edge.routes import parse
from tests.integration.edge.upstream import Upstream
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

_OWN = '[routes.own]\nprefix = "/own"\nupstream = "{}"\n'


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    place = Directory(tmp_path / "stack")
    place.create()
    return place


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "routes.toml"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    server.start()
    yield server
    server.stop()


def test_the_samples_route_is_added_to_the_users(directory: Directory, own: Path) -> None:
    own.write_text(_OWN.format("http://127.0.0.1:9000").rstrip())
    both = parse(routes.with_sample(directory, own, 1234).read_text())
    assert {(route.name, route.prefix, route.upstream) for route in both} == {
        ("own", "/own", "http://127.0.0.1:9000"),
        ("echo", "/echo", "http://127.0.0.1:1234"),
    }


@pytest.mark.parametrize(("name", "prefix"), [("echo", "/mine"), ("mine", "/echo"), ("mine", "/echo/")])
def test_a_route_that_the_sample_wants_is_refused(directory: Directory, own: Path, name: str, prefix: str) -> None:
    own.write_text(f'[routes.{name}]\nprefix = "{prefix}"\nupstream = "http://127.0.0.1:9000"\n')
    with pytest.raises(StackError, match="which --sample wants for its own"):
        routes.with_sample(directory, own, 1234)


def test_all_that_is_wrong_with_the_users_file_is_told(directory: Directory, own: Path) -> None:
    own.write_text('[routes.a]\nprefix = "a"\nupstream = "ftp://x"\n[routes.b]\nprefix = "/b"\n')
    with pytest.raises(StackError) as raised:
        routes.with_sample(directory, own, 1234)
    assert str(own) in str(raised.value)
    assert [line.split()[:2] for line in str(raised.value).splitlines()[1:]] == [
        ["a:", "prefix"],
        ["a:", "upstream"],
        ["b:", "upstream"],
    ]


def test_clients_call_the_echo_and_have_the_same_keys_when_started_again(
    directory: Directory, own: Path, upstream: Upstream
) -> None:
    own.write_text(_OWN.format(upstream.origin))
    stack = LocalStack(directory.root, "--sample", "--routes", str(own))
    stack.start()
    try:
        assert {row["name"] for row in stack.status()["processes"] if row["role"] == "sample"} == {
            "sample-upstream",
            "sample-traffic",
        }
        with httpx2.Client(base_url=stack.url, headers={"X-API-Key": stack.env["KEYLEDGER_API_KEY"]}) as client:
            _assert_echo(client)
            assert client.get("/own/x").status_code == 200
            eventually_sync(
                lambda: _is_alive(client), deadline=60, interval=1.0
            )  # the key may be used 100 times a minute
        keys = _made(stack)
        before = stack.kill("sample-traffic")
        stack.wait_restarted("sample-traffic", before)
        assert _made(stack) == keys
    finally:
        stack.stop()


def _assert_echo(client: httpx2.Client) -> None:
    answer = client.post("/echo/orders", params={"status": 409}, json={})
    assert answer.status_code == 409
    told = answer.json()
    assert (told["method"], told["path"], told["request_id"]) == (
        "POST",
        "/echo/orders",
        answer.headers["x-request-id"],
    )
    assert told["identity"] == {"owner_id": 1, "key_id": 1, "permissions": ["admin"]}
    assert not {"x-api-key", "keyledger-identity"} & told["headers"].keys()


def _is_alive(client: httpx2.Client) -> bool:
    """Whether several clients have called, and tickets were opened."""
    stats = client.get("/api/v1/dashboard/stats").json()
    busy = [key["name"] for key in stats["api_keys"] if key["usage_count"] and key["name"] != "admin's first key"]
    return len(busy) >= 3 and bool(stats["recent_tickets"]) and stats["recent_tickets"][0]["subject"] in SUBJECTS


def _made(stack: LocalStack) -> list[tuple[int, str]]:
    with httpx2.Client(base_url=stack.url, headers={"X-API-Key": stack.env["KEYLEDGER_API_KEY"]}) as client:
        listed: list[dict[str, Any]] = client.get("/api/v1/api-keys", params={"size": 100}).json()["api_keys"]
    ours = [(key["id"], key["name"]) for key in listed if key["id"] != 1]
    assert [name for _, name in ours] == [client.name for client in (*CLIENTS, DESK)]
    return ours
