"""A whole local stack to measure, with a route to the upstream."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.client import Client
from tests.load import machine, servers
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack, family

_QUIET = 0.4
_COUNTED_SECONDS = 240.0
_ROUTES = """
[routes.bench]
prefix = "/bench"
upstream = "http://127.0.0.1:{port}"
"""


@dataclass(frozen=True)
class Bench:
    """The running stack. `owner` and `admin` have keys without limits, of the owner `owner_id` and of another; `settings` are
    the variables that it was started with.
    """

    directory: Path
    stack: LocalStack
    upstream_port: int
    owner_id: int
    owner: Client
    admin: Client
    settings: Mapping[str, str]

    @property
    def port(self) -> int:
        """The edge's."""
        return int(self.stack.url.rpartition(":")[2])

    def pid(self, name: str) -> int:
        """The process that `keyledger status` calls so."""
        return int(self.stack.process(name)["pid"])

    def pids(self) -> list[int]:
        """All processes of the stack: its supervisor's, and all that descend from it."""
        supervisor = self.stack.directory.holder()
        assert supervisor is not None, "the stack does not run"
        return family(supervisor)

    def settle(self, deadline: float = 60.0) -> None:
        """Returns when the stack has nothing more to do, or AssertionError after the deadline (s)."""

        def quiet() -> bool:
            pids = self.pids()
            before, began = machine.cpu_seconds(pids), time.monotonic()
            time.sleep(0.5)
            return machine.cpu_seconds(pids) - before < _QUIET * (time.monotonic() - began)

        eventually_sync(quiet, deadline)

    def counted(self, keys: Sequence[Mapping[str, Any]]) -> int:
        """The calls of these keys that the usage service has counted."""
        return sum(int(self.owner.get(f"/api/v1/api-keys/{key['id']}").json()["usage_count"]) for key in keys)

    def shown(self) -> int:
        """The owner's calls on the dashboard, as the administrator sees it, whose own requests count elsewhere."""
        return int(self.admin.get("/api/v1/dashboard/stats", owner=self.owner_id).json()["total_api_calls"])

    def expect_counted(self, keys: Sequence[Mapping[str, Any]], answers: int) -> str:
        """Waits until that many are; says so. Raises AssertionError when they do not become as many, or become more."""
        eventually_sync(lambda: self.counted(keys) >= answers, _COUNTED_SECONDS, 1.0)
        self.settle()
        counted = self.counted(keys)
        assert counted == answers, f"{counted:,} calls were counted of {answers:,} answers"
        return f"Metered: each of the {answers:,} answers that the edge gave meanwhile, once."


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A directory for a measurement's files, on the disk of the checkout: elsewhere a sync may cost nothing."""
    with tempfile.TemporaryDirectory(prefix=".keyledger-bench-", dir=".") as path:
        yield Path(path).absolute()


@contextlib.contextmanager
def running(path: Path, settings: Mapping[str, str]) -> Iterator[Bench]:
    """Starts the stack and an upstream, and ends them. `settings` are variables for the stack's processes."""
    os.environ.update(settings)
    with servers.upstream(path) as port:
        routes = path / "routes.toml"
        routes.write_text(_ROUTES.format(port=port))
        stack = LocalStack(path / "stack", "--routes", str(routes))
        try:
            stack.start()
            made, other = (
                json.loads(stack.cli("owner", "create", name, "--no-limits", "--json", *options))
                for name, *options in (("bench",), ("watcher", "--admin"))
            )
            with Client(stack.url, made["secret"]) as owner, Client(stack.url, other["secret"]) as admin:
                for client in (owner, admin):
                    eventually_sync(lambda client=client: client.get(servers.PATH).status_code == 200)
                yield Bench(path, stack, port, made["owner_id"], owner, admin, settings)
        finally:
            stack.stop()
