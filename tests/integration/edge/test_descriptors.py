"""Connections are files, of which a process may have so many: clients that use theirs up leave the edge its own."""

from __future__ import annotations

import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.integration.edge.world import Raw, World, request
from tests.support.eventually import eventually_sync

Make = Callable[..., World]
FILES = 256
CROWD = 500


def seconds(clients: list[Raw], key: str) -> list[float]:
    """How long requests to an upstream take, sent by all of these clients at once."""
    took, started = [], time.perf_counter()
    for client in clients:
        client.send(request("/echo/x", key))
    for client in clients:
        assert client.response().status == 200
        took.append(time.perf_counter() - started)
    return took


def p99_ms(took: list[float]) -> float:
    return 1000 * sorted(took)[int(len(took) * 0.99)]


def burst(world: World, crowd: ExitStack) -> None:
    """As many connections at once as the kernel takes, which one turn of the event loop then accepts."""
    world.signal(signal.SIGSTOP)
    for _ in range(CROWD):
        one = crowd.enter_context(socket.socket())
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", world.port))
    world.signal(signal.SIGCONT)


def open_files(world: World) -> int:
    return len(list(Path(f"/proc/{world.pid}/fd").iterdir()))


def test_who_uses_up_all_descriptors_harms_no_other(make: Make) -> None:
    world = make()
    world.files = FILES
    world.ready()
    key = world.key()
    world.start().until_ready()
    with ExitStack() as others, ExitStack() as crowd:
        clients = [others.enter_context(world.raw()) for _ in range(8)]
        alone = [each for _ in range(CROWD // 10) for each in seconds(clients, key)]
        burst(world, crowd)
        crowded, most = [], 0
        for number in range(CROWD):
            with suppress(OSError):
                crowd.enter_context(world.raw()).send(b"GET /slow HTTP/1.1\r\n")
            if number % 10 == 0:
                crowded += seconds(clients, key)
                most = max(most, open_files(world))
        figures = f"p99 {p99_ms(alone):.1f} ms alone, {p99_ms(crowded):.1f} ms beside {CROWD} that hold what they get"
        sys.stdout.write(f"\n{figures}; {most} of {FILES} files open at most ")
        assert world.is_ready_now()
        assert world.metric("keyledger_edge_log_failures_total") == 0
        assert most < FILES - 16, "none was kept"
        assert world.metric("keyledger_edge_upstream_failures_total") == 0
    eventually_sync(lambda: world.get("/echo/y", key).status == 200)
    assert len(world.settled("/echo/x")) == CROWD // 10 * 16
    told = (world.data / "out.log").read_text()
    assert "fewer connections than are set" in told
    assert "Too many open files" not in told


def test_the_soft_limit_is_raised_as_far_as_the_hard_one_lets_it(make: Make) -> None:
    world = make()
    world.files = 4096
    world.ready()
    world.start().until_ready()
    limits = Path(f"/proc/{world.pid}/limits").read_text()
    (row,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert row.split()[3:5] == ["4096", "4096"]


def test_without_a_descriptor_left_accepting_neither_spins_nor_stops(make: Make) -> None:
    world = make()
    world.ready()
    key = world.key()
    world.start().until_ready()
    _, hard = resource.prlimit(world.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(world.pid, resource.RLIMIT_NOFILE, (open_files(world) + 4, hard))
    with ExitStack() as crowd:
        burst(world, crowd)
        # A connection that finds no descriptor is dropped; the first of them came in.
        first, spent = world.raw(), cpu_seconds(world)
        crowd.callback(first.socket.close)
        with suppress(ConnectionError):
            first.closed()
        time.sleep(0.5)
        assert cpu_seconds(world) - spent < 0.25
    resource.prlimit(world.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert eventually_sync(lambda: world.get("/echo/x", key)).status == 200


def cpu_seconds(world: World) -> float:
    fields = Path(f"/proc/{world.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
