"""The processes of Keyledger itself: their commands and settings on this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.local import probes
from deploy.local.directory import Directory
from deploy.local.ports import Ports
from deploy.local.servers import Servers
from deploy.local.spec import Spec
from deploy.local.state import SERVICES, State
from services.edge.settings import DRAIN_SECONDS, stop_seconds
from shared.process import ENDING_SECONDS

PORT_NAMES = (
    "edge",
    "edge-internal",
    *(f"{service}-{part}" for service in SERVICES for part in ("api", "api-internal", "worker-internal")),
    "sample-upstream",
    "sample-upstream-internal",
    "sample-traffic-internal",
)

_STOP_SECONDS = ENDING_SECONDS + 5
"""What a process takes to end, once it has left its load balancer, and a little."""


@dataclass(frozen=True)
class Services:
    """All services of one directory. `edge_port` is the clients' door; `routes` a file of routes to other upstreams, if any."""

    directory: Directory
    state: State
    ports: Ports
    servers: Servers
    edge_port: int
    routes: Path | None

    @property
    def url(self) -> str:
        """The edge's address."""
        return f"http://127.0.0.1:{self.edge_port}"

    def dsn(self, service: str) -> str:
        """The service's database, as the service's own role."""
        return self.servers.postgres.dsn(service, self.state.passwords[service])

    def addresses(self) -> dict[str, str]:
        """What `<dir>/env` says besides the first key."""
        dsns = {f"KEYLEDGER_{service.upper()}_DATABASE": self.dsn(service) for service in SERVICES}
        return {"KEYLEDGER_URL": self.url, "KEYLEDGER_KAFKA": self.servers.kafka.address, **dsns}

    def migrations(self) -> list[Spec]:
        """One job for each database."""
        return [self._job(f"{service}-migrate", (f"services.{service}", "migrate"), service) for service in SERVICES]

    def first_key(self) -> Spec:
        """The job that makes the first owner and key."""
        return self._job("first-key", ("deploy.local.first_key", str(self.directory.root)), "keys")

    def processes(self) -> list[Spec]:
        """All that keep running, the edge last: it ends first."""
        roles = ((service, role) for service in SERVICES for role in ("worker", "api"))
        return [*(self._service(service, role) for service, role in roles), self._edge()]

    def sample(self, first_key: str) -> list[Spec]:
        """The sample's upstream, and the clients that call it, which need the edge and the first key's secret."""
        port, internal = (str(self.ports[f"sample-upstream{part}"]) for part in ("", "-internal"))
        keys = str(self.directory.secrets / "sample.json")
        url = {"KEYLEDGER_URL": self.url}
        return [
            Spec(
                name="sample-upstream",
                role="sample",
                command=_python("deploy.sample.upstream", port, internal),
                env=url,
                probe=probes.http(int(internal)),
            ),
            Spec(
                name="sample-traffic",
                role="sample",
                command=_python("deploy.sample.traffic", keys, str(self.ports["sample-traffic-internal"])),
                env=url | {"KEYLEDGER_API_KEY": first_key},
                probe=probes.http(self.ports["sample-traffic-internal"]),
            ),
        ]

    def _service(self, service: str, role: str) -> Spec:
        internal = self.ports[f"{service}-{role}-internal"]
        return Spec(
            name=f"{service}-{role}",
            role=role,
            command=_python(f"services.{service}", role),
            env=self._settings(service, internal),
            probe=probes.http(internal),
            stop_seconds=_leave_seconds() + _STOP_SECONDS,
        )

    def _edge(self) -> Spec:
        internal = self.ports["edge-internal"]
        apis = {f"KEYLEDGER_EDGE_{name.upper()}_URL": self._api(name) for name in ("keys", "tickets", "stats")}
        routes = {"KEYLEDGER_EDGE_ROUTES": str(self.routes.absolute())} if self.routes else {}
        own = {
            "KEYLEDGER_EDGE_HOST": "127.0.0.1",
            "KEYLEDGER_EDGE_PORT": str(self.edge_port),
            "KEYLEDGER_EDGE_DATA": str(self.directory.edge),
            "KEYLEDGER_EDGE_IDENTITY_KEY": str(self.directory.secrets / "identity.pem"),
        }
        return Spec(
            name="edge",
            role="edge",
            command=_python("services.edge"),
            env=self._common(internal) | own | apis | routes,
            probe=probes.http(internal),
            stop_seconds=stop_seconds(_leave_seconds(), _number("KEYLEDGER_EDGE_DRAIN_SECONDS", DRAIN_SECONDS)),
        )

    def _job(self, name: str, command: tuple[str, ...], service: str) -> Spec:
        return Spec(name, "job", _python(*command), env=self._settings(service, 0))

    def _settings(self, service: str, internal: int) -> dict[str, str]:
        prefix = f"KEYLEDGER_{service.upper()}"
        return self._common(internal) | {
            f"{prefix}_DATABASE": self.dsn(service),
            f"{prefix}_HOST": "127.0.0.1",
            f"{prefix}_PORT": str(self.ports[f"{service}-api"]),
            "KEYLEDGER_IDENTITY_PUBLIC_KEYS": str(self.directory.secrets / "identity-public.pem"),
            "KEYLEDGER_KEYS_USAGE_URL": self._api("usage"),
        }

    def _common(self, internal: int) -> dict[str, str]:
        return {
            "KEYLEDGER_KAFKA": self.servers.kafka.address,
            "KEYLEDGER_INTERNAL_HOST": "127.0.0.1",
            "KEYLEDGER_INTERNAL_PORT": str(internal),
            "PYTHONUNBUFFERED": "1",
        }

    def _api(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[f'{service}-api']}"


def _leave_seconds() -> float:
    return _number("KEYLEDGER_LEAVE_SECONDS", 0)


def _number(variable: str, default: float) -> float:
    """A number that the processes get from this one's environment; what is none, they refuse with better words."""
    with contextlib.suppress(ValueError):
        return float(os.environ.get(variable, default))
    return default


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    """A module of ours, whatever lies in the directory where the user happens to be (-P)."""
    return (sys.executable, "-P", "-m", module, *arguments)
