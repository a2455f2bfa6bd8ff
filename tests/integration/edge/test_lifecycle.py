"""How the edge's processes start, hand over and end."""

from __future__ import annotations

import asyncio
import fcntl
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
from pathlib import Path
from typing import Any

import pytest

from services.edge.replica.rules import StateBatch
from shared.events.keys import Limits
from tests.integration.edge.upstream import Seen, plain
from tests.integration.edge.world import Raw, World, request
from tests.support.eventually import eventually_sync
from tests.support.service import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Make = Callable[..., World]


def holding(world: World, path: str) -> asyncio.Event:
    """The upstream answers requests for `path` when the event is set."""
    go_on = asyncio.Event()

    async def wait(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(go_on.wait(), 30)
        await plain(OK)(seen, reader, writer)

    world.upstream.behaviours[path] = wait
    return go_on


def test_sigterm_lets_requests_under_way_end(make: Make) -> None:
    world = make()
    world.ready()
    key = world.key()
    world.start().until_ready()
    go_on = holding(world, "/echo/drain")
    idle, busy = Raw(world.port), Raw(world.port)
    idle.send(request("/echo/x", key))
    assert idle.response().status == 200
    busy.send(request("/echo/drain", key))
    eventually_sync(lambda: world.upstream.of("/echo/drain"))
    world.signal(signal.SIGTERM)
    assert idle.closed()
    eventually_sync(lambda: refuses(world.port))
    world.upstream.call(go_on.set)
    response = busy.response()
    assert (response.status, response.body, response.header("connection")) == (200, b"ok", "close")
    assert busy.closed()
    assert world.wait() == 0
    assert world.record(response.header("x-request-id")).status_code == 200


def test_the_drain_has_an_end(make: Make) -> None:
    world = make(drain_seconds="0.5")
    world.ready()
    key = world.key()
    world.start().until_ready()
    go_on = holding(world, "/echo/never")
    with world.raw() as client:
        client.send(request("/echo/never", key))
        eventually_sync(lambda: world.upstream.of("/echo/never"))
        world.signal(signal.SIGTERM)
        assert client.closed()
    assert world.wait() == 0
    assert [record.status_code for record in world.settled("/echo/never")] == [499]
    world.upstream.call(go_on.set)


def test_a_drain_has_the_time_that_is_set(make: Make) -> None:
    world = make(drain_seconds="600")
    world.ready()
    key = world.key()
    world.start().until_ready()
    go_on = holding(world, "/echo/long")
    with world.raw() as client:
        client.send(request("/echo/long", key))
        eventually_sync(lambda: world.upstream.of("/echo/long"))
        world.signal(signal.SIGTERM)
        told = eventually_sync(lambda: json.loads(world.internal_any("/readyz"))["checks"]["ending"])
        assert told == {"ready": False, "detail": "told to end, within 605 s"}
        world.upstream.call(go_on.set)
        assert client.response().status == 200
    assert world.wait() == 0


def test_a_successor_serves_while_its_predecessor_still_drains(make: Make) -> None:
    world = make(drain_seconds="60")
    world.ready()
    secret = world.key(Limits(minute=3, hour=10, day=100))
    world.start().until_ready()
    go_on = holding(world, "/echo/long")
    assert world.get("/echo/x", secret).status == 200
    with world.raw() as client, world.raw() as slow:
        slow.send(request("/echo/x", secret)[:40])
        client.send(request("/echo/long", secret))
        eventually_sync(lambda: world.upstream.of("/echo/long"))
        with world.superseded():
            assert slow.response().status == 503
            assert slow.closed()
            # Both admissions of the one before count here, also the one that is open there.
            assert [world.get("/echo/x", secret).status for _ in range(2)] == [200, 429]
            world.upstream.call(go_on.set)
            assert client.response().status == 200
    assert len(world.settled("/echo/long")) == 1


def test_a_head_on_its_way_is_still_served(make: Make) -> None:
    world = make()
    world.ready()
    key = world.key()
    world.start().until_ready()
    head = request("/echo/late", key)
    with world.raw() as client:
        client.send(head[:40])
        eventually_sync(lambda: world.metric("keyledger_edge_connections") >= 1)
        world.signal(signal.SIGTERM)
        eventually_sync(lambda: refuses(world.port))
        client.send(head[40:])
        assert client.response().status == 200
    assert world.wait() == 0


def test_a_successor_waits_until_its_predecessor_admits_no_more(make: Make) -> None:
    world = make()
    world.ready()
    secret = world.key(Limits(minute=3, hour=10, day=100))
    (world.data / "slots").mkdir()
    with (world.data / "slots" / "0.lock").open("w") as slot:
        fcntl.flock(slot, fcntl.LOCK_EX)
        world.start()
        ready = eventually_sync(lambda: json.loads(world.internal_any("/readyz")))
        assert ready["checks"]["slot"] == {"ready": False, "detail": "waiting for the process before"}
    world.until_ready()
    assert world.get("/echo/x", secret).status == 200


def test_a_waiting_successor_can_be_told_to_end(make: Make) -> None:
    world = make()
    world.ready()
    (world.data / "slots").mkdir()
    with (world.data / "slots" / "0.lock").open("w") as slot:
        fcntl.flock(slot, fcntl.LOCK_EX)
        world.start()
        eventually_sync(lambda: "slot" in world.internal_any("/readyz"))
        world.signal(signal.SIGTERM)
        assert world.wait() == 0


def test_the_limits_survive_a_restart(make: Make) -> None:
    world = make()
    world.ready()
    secret = world.key(Limits(minute=3, hour=10, day=100))
    for expected in ([200, 200], [200, 429]):
        world.start().until_ready()
        assert [world.get("/echo/x", secret).status for _ in range(2)] == expected
        world.signal(signal.SIGTERM)
        assert world.wait() == 0


def test_a_serving_process_has_no_client_of_kafka_or_of_a_database(make: Make) -> None:
    world = make()
    world.ready()
    key = world.key()
    world.start().until_ready()
    assert world.get("/echo/x", key).status == 200
    loaded = Path(f"/proc/{world.pid}/maps").read_text()
    assert "aiokafka" not in loaded
    assert "psycopg" not in loaded
    ports = {line.split()[2] for line in Path(f"/proc/{world.pid}/net/tcp").read_text().splitlines()[1:]}
    assert "0100007F:0001" not in ports


# The parent


class Parent:
    """An edge run as it is in production, but without Kafka."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **more: str) -> Parent:
        self.internal = free_port()
        environment = self.world.environment(-1)
        for name in ("SOCKET", "SESSION"):
            del environment[f"KEYLEDGER_EDGE_{name}"]
        environment |= {"KEYLEDGER_INTERNAL_PORT": str(self.internal), "KEYLEDGER_EDGE_PORT": "0", **more}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.edge"],
            env=os.environ | environment,
            stdout=(self.world.data / "out.log").open("ab"),
            stderr=subprocess.PIPE,
        )
        return self

    def page(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.internal}{path}", timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def ready(self) -> dict[str, Any]:
        return json.loads(self.page("/readyz"))

    def child(self, role: str) -> dict[str, Any]:
        (found,) = [row for row in self.ready()["processes"] if row["role"] == role]
        return found

    def until_serving(self) -> int:
        """The port, once requests are answered."""

        def serving() -> int | None:
            port = self.ready()["port"]
            with Raw(port) as client:
                client.socket.settimeout(2)
                client.send(request("/.well-known/keyledger/jwks.json"))
                return port if client.response().status == 200 else None

        return eventually_sync(serving) or 0


@pytest.fixture
def parent(make: Make) -> Iterator[Parent]:
    made = Parent(make())
    yield made
    if made.process is not None:
        if made.process.poll() is None:
            made.process.terminate()
        made.process.wait(30)


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return True
    return False


def test_the_parent_tells_of_its_children_and_ends_them(parent: Parent) -> None:
    port = parent.start().until_serving()
    ready = parent.ready()
    assert not ready["ready"]
    assert [row["role"] for row in ready["processes"]] == ["serving", "agent"]
    pids = [row["pid"] for row in ready["processes"]]
    assert all(map(alive, pids))
    assert (parent.world.data / "edge-id").read_text().strip() == "e" * 32
    assert parent.process is not None
    parent.process.terminate()
    assert parent.process.wait(40) == 0
    assert not any(map(alive, pids))
    assert refuses(port)


def test_readiness_goes_off_before_the_port_does(parent: Parent) -> None:
    port = parent.start(KEYLEDGER_LEAVE_SECONDS="1.5").until_serving()
    assert parent.process is not None
    parent.process.terminate()
    eventually_sync(lambda: "ending" in parent.ready()["checks"])
    with Raw(port) as client:
        client.send(request("/.well-known/keyledger/jwks.json"))
        assert client.response().status == 200
    assert parent.process.wait(40) == 0


def test_a_child_that_can_not_run_with_its_settings_ends_the_edge(parent: Parent) -> None:
    parent.world.ready()
    parent.world.writer.apply([StateBatch(0, [], 1)], 0)
    parent.start(KEYLEDGER_PARTITIONS="3")
    assert parent.process is not None
    _, errors = parent.process.communicate(timeout=30)
    assert parent.process.returncode == 78
    assert b"KEYLEDGER_PARTITIONS: key-states has 3 partitions, the replica was made for 1" in errors


def test_a_child_that_dies_is_started_again_and_nobody_is_refused(parent: Parent) -> None:
    port = parent.start().until_serving()
    for role in ("serving", "agent"):
        killed = pid_of(parent, role)
        os.kill(killed, signal.SIGKILL)
        if role == "serving":
            with Raw(port) as client:
                client.send(request("/.well-known/keyledger/jwks.json"))
                assert client.response().status == 200
        assert pid_of(parent, role, other_than=killed) != killed
        assert parent.child(role)["restarts"] >= 1


def pid_of(parent: Parent, role: str, other_than: int = 0) -> int:
    return eventually_sync(lambda: pid if (pid := parent.child(role)["pid"]) != other_than else None) or 0


def test_children_end_with_their_parent(parent: Parent) -> None:
    parent.start().until_serving()
    pids = [row["pid"] for row in parent.ready()["processes"]]
    assert parent.process is not None
    parent.process.kill()
    parent.process.wait()
    eventually_sync(lambda: not any(map(alive, pids)))


def test_all_that_is_wrong_is_said_at_once(parent: Parent) -> None:
    routes = parent.world.data / "wrong.toml"
    routes.write_text(
        '[routes.a]\nprefix = "/docs"\nupstream = "x"\n[routes.b]\nprefix = "/docs"\nupstream = "http://h"\n'
    )
    parent.start(
        KEYLEDGER_EDGE_ROUTES=str(routes),
        KEYLEDGER_EDGE_IDENTITY_KEY="/nowhere",
        KEYLEDGER_EDGE_KEYS_URL="keys",
        KEYLEDGER_EDGE_PORT="x",
        KEYLEDGER_KAFKA="",
    )
    assert parent.process is not None
    _, errors = parent.process.communicate(timeout=30)
    assert parent.process.returncode == 78
    text = errors.decode()
    for name in ("EDGE_ROUTES", "EDGE_IDENTITY_KEY", "EDGE_KEYS_URL", "EDGE_PORT", "KAFKA"):
        assert f"KEYLEDGER_{name} (" in text, (name, text)
    assert f"{routes} can't be used:\n    a: upstream is 'x', but must be" in text
    assert "\n    b: /docs belongs to the platform\n" in text


def test_a_second_edge_on_the_same_data_says_so(parent: Parent) -> None:
    parent.start().until_serving()
    second = Parent(parent.world).start()
    assert second.process is not None
    _, errors = second.process.communicate(timeout=30)
    assert second.process.returncode == 78
    assert b"in use by another edge" in errors


def test_an_unknown_role_is_refused() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "services.edge", "other"], check=False, capture_output=True, timeout=60
    )
    assert ended.returncode == 64
    assert b"usage" in ended.stderr


def test_the_childrens_figures_are_the_parents(parent: Parent) -> None:
    parent.start().until_serving()
    started = time.monotonic()
    # The connection that found it serving may still be in the first figures.
    eventually_sync(lambda: 'keyledger_edge_connections{process="serving"} 0.0' in parent.page("/metrics").splitlines())
    assert time.monotonic() - started < 30
