"""Stack and servers in containers: the project's own docker-compose.yml, and testcontainers for PostgreSQL and Kafka alone.

What compose publishes is the edge; an override made here opens the rest on loopback, for tests to look at and to kill.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container
from testcontainers.core.container import DockerContainer

from deploy.local import environment, probes
from deploy.local.kafka import ONE_BROKER, SMALL_MACHINE
from deploy.local.ports import Ports, reserved
from deploy.local.probes import Health, Probe
from deploy.local.state import SERVICES
from tests.support.eventually import eventually_sync
from tests.support.stack import READY_SECONDS, Processes, Servers

HOST = "host.docker.internal"
"""This machine, as the edge's container knows it."""

_ROOT = Path(__file__).parents[2]
_PROCESSES = (*(f"{service}-{role}" for service in SERVICES for role in ("api", "worker")), "edge")
_PORT_NAMES = ("edge", "postgres", "kafka", *(f"{name}-internal" for name in _PROCESSES))
_INTERNAL_PORT = 9090
_TESTS_PORT = 9094


class ContainerProcesses(Processes):
    """The processes in these containers, each the one child of its container's first process, and the edge's children."""

    def __init__(self, containers: Mapping[str, str], probe: Mapping[str, Probe]) -> None:
        self._names = containers
        self._probes = probe
        self._docker = docker.from_env()

    def status(self) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        for name, health in _ask(self._probes).items():
            found = self._container(name).attrs
            state = found["State"]
            rows.append(
                {
                    "name": name,
                    "role": name.rpartition("-")[2],
                    "pid": state["Pid"] or None,
                    "ready": health.ready and state["Status"] == "running",
                    "restarts": found["RestartCount"],
                }
            )
            rows += health.processes
        return {"url": "", "ready": all(row["ready"] for row in rows), "processes": rows}

    def process(self, name: str) -> dict[str, Any]:
        return next(row for row in self.status()["processes"] if row["name"] == name)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        def send() -> int:
            pid = int(self.process(name)["pid"])
            self._signal(name, pid, number)
            return pid

        return eventually_sync(send)

    def pause(self, name: str) -> int:
        pid = int(self.process(name)["pid"])
        if name in self._names:
            self._container(name).pause()
        else:
            self._signal(name, pid, signal.SIGSTOP)
        return pid

    def resume(self, name: str) -> int:
        if name in self._names:
            self._container(name).unpause()
        else:
            self._signal(name, int(self.process(name)["pid"]), signal.SIGCONT)
        return int(self.process(name)["pid"])

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        before = int(self.process(name)["pid"])
        self._container(name).stop(timeout=60)
        try:
            yield
        finally:
            self._container(name).start()
        self.wait_restarted(name, before)

    def logs(self, name: str) -> str:
        return self._container(name).logs().decode()

    def execute(self, name: str, *command: str) -> str:
        """Run a command in the container and return what it printed; its exit code is nobody's."""
        output: Any = self._container(name).exec_run(list(command)).output
        return str(output, "utf-8", "replace")

    def _signal(self, name: str, pid: int, number: signal.Signals) -> None:
        """The engine would take its own signal for a wish that the container stays down; a process's end is an accident."""
        target = "$(</proc/1/task/1/children)" if name in self._names else str(pid)
        self.execute(name, "bash", "-c", f"kill -{number.value} {target}")

    def _container(self, name: str) -> Container:
        return self._docker.containers.get(self._names[name if name in self._names else "edge"])


class ContainerStack(ContainerProcesses):
    """A compose project with a name of its own."""

    def __init__(self, directory: Path, routes: Path, ports: Ports) -> None:
        self._project = f"keyledger-test-{secrets.token_hex(4)}"
        self._directory = directory
        self._routes = routes
        self._ports = ports
        self._override = directory / "override.json"
        probe = {
            "postgres": probes.postgres(ports["postgres"]),
            "kafka": probes.kafka(ports["kafka"]),
            **{name: probes.http(ports[f"{name}-internal"]) for name in _PROCESSES},
        }
        super().__init__({name: f"{self._project}-{name}-1" for name in probe}, probe)

    @property
    def url(self) -> str:
        return self.env["KEYLEDGER_URL"]

    @cached_property
    def env(self) -> dict[str, str]:
        path = self._directory / "first-key.env"
        self._compose("cp", "first-key:/first-key/env", str(path))
        variables = {"KEYLEDGER_KAFKA": f"127.0.0.1:{self._ports['kafka']}", **environment.read(path)}
        for service in SERVICES:
            name = f"KEYLEDGER_{service.upper()}_DATABASE"
            dsn = self.execute(f"{service}-api", "cat", f"/run/secrets/{name}").strip()
            variables[name] = dsn.replace("@postgres:5432/", f"@127.0.0.1:{self._ports['postgres']}/")
        return variables

    def start(self) -> None:
        self._override.write_text(json.dumps(_override(self._ports)))
        self._compose("up", "--detach", "--wait", "--wait-timeout", str(int(READY_SECONDS)))

    def stop(self) -> None:
        self._compose("stop")

    def remove(self) -> None:
        """End all and delete its data."""
        self._compose("down", "--volumes")

    def cli(self, *arguments: str) -> str:
        return self._compose("run", "--rm", "--no-TTY", "keyledger", *arguments)

    def holding(self, text: str) -> list[str]:
        data = {"postgres": "/var/lib/postgresql", "kafka": "/var/lib/kafka/data", "edge": "/var/lib/keyledger"}
        logs = [name for name in self._names if text in self.logs(name)]
        return [*logs, *(name for name, path in data.items() if self.execute(name, "grep", "-rlF", text, path))]

    def _compose(self, *arguments: str) -> str:
        files = ("-f", str(_ROOT / "docker-compose.yml"), "-f", str(self._override))
        variables = {"KEYLEDGER_PORT": str(self._ports["edge"]), "KEYLEDGER_ROUTES": str(self._routes)}
        done = subprocess.run(
            ("docker", "compose", "--project-name", self._project, *files, *arguments),
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=2 * READY_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"docker compose {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout


@contextmanager
def container_stack(directory: Path, routes: Path) -> Iterator[ContainerStack]:
    """A stack as long as the context lives, and nothing of it afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    with reserved(_PORT_NAMES, 0) as ports:
        stack = ContainerStack(directory, routes, ports)
        try:
            stack.start()
            yield stack
        finally:
            stack.remove()


@contextmanager
def container_servers() -> Iterator[Servers]:
    """PostgreSQL and Kafka as long as the context lives, and nothing of them afterwards."""
    password = secrets.token_hex(12)
    with reserved(("postgres", "kafka"), 0) as ports, ExitStack() as stack:
        postgres = stack.enter_context(_postgres(ports["postgres"], password))
        kafka = stack.enter_context(kafka_container(ports["kafka"]))
        processes = ContainerProcesses(
            {"postgres": postgres.get_container_id(), "kafka": kafka.get_container_id()},
            {"postgres": probes.postgres(ports["postgres"]), "kafka": probes.kafka(ports["kafka"])},
        )
        processes.wait_ready(READY_SECONDS)
        dsn = f"postgresql://postgres:{password}@127.0.0.1:{ports['postgres']}/postgres"
        yield Servers(dsn, f"127.0.0.1:{ports['kafka']}", processes)


def kafka_container(port: int) -> DockerContainer:
    """One broker, a cluster of its own, at this port of loopback."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:9093",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": "/var/lib/kafka/data",
        **_listeners("localhost", port),
        **ONE_BROKER,
        **SMALL_MACHINE,
    }
    variables = {
        "CLUSTER_ID": urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=").replace("-", "a"),
        "KAFKA_HEAP_OPTS": "-Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1",
        "KAFKA_JVM_PERFORMANCE_OPTS": "-server",
        **_variables(settings),
    }
    return _container("apache/kafka:4.3.0", _TESTS_PORT, port, variables)


def kafka_variable(name: str) -> str:
    """The variable by which the image takes a property of the server."""
    return "KAFKA_" + name.upper().replace(".", "_")


def _variables(settings: Mapping[str, str]) -> dict[str, str]:
    return {kafka_variable(name): value for name, value in settings.items()}


def _listeners(host: str, port: int) -> dict[str, str]:
    """A listener for clients on this machine beside the broker's own, by which it has to find itself in its container."""
    return {
        "listeners": f"PLAINTEXT://:9092,CONTROLLER://localhost:9093,TESTS://:{_TESTS_PORT}",
        "advertised.listeners": f"PLAINTEXT://{host}:9092,TESTS://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TESTS:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
    }


def _postgres(port: int, password: str) -> DockerContainer:
    return _container("postgres:18", 5432, port, {"POSTGRES_PASSWORD": password}, ["postgres", "-cmax_connections=200"])


def _container(
    image: str, inside: int, port: int, variables: dict[str, str], command: Sequence[str] | None = None
) -> DockerContainer:
    made = DockerContainer(
        image,
        env=variables,
        command=command,  # type: ignore[bad-argument-type]
        init=True,
        restart_policy={"Name": "unless-stopped"},
    )
    made.ports[f"{inside}/tcp"] = ("127.0.0.1", port)  # type: ignore[unsupported-operation]
    return made


def _override(ports: Ports) -> dict[str, Any]:
    """Ports on loopback. Compose adds them to its own."""
    services: dict[str, dict[str, Any]] = {
        name: {"networks": ["tests"], "ports": [f"127.0.0.1:{ports[f'{name}-internal']}:{_INTERNAL_PORT}"]}
        for name in _PROCESSES
    }
    services["postgres"] = {
        "init": True,
        "networks": ["tests"],
        "ports": [f"127.0.0.1:{ports['postgres']}:5432"],
    }
    services["kafka"] = {
        "init": True,
        "networks": ["tests"],
        "ports": [f"127.0.0.1:{ports['kafka']}:{_TESTS_PORT}"],
        "environment": _variables(_listeners("kafka", ports["kafka"])),
    }
    return {"services": services, "networks": {"tests": {}}}


def _ask(questions: Mapping[str, Probe]) -> dict[str, Health]:
    """All answers, also where a loop runs already."""

    async def ask() -> list[Health]:
        return await asyncio.gather(*map(probes.check, questions.values()))

    with ThreadPoolExecutor(1) as thread:
        return dict(zip(questions, thread.submit(lambda: asyncio.run(ask())).result(), strict=True))
