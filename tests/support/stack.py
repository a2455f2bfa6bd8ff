"""What tests run against: a whole stack behind one interface, or PostgreSQL and Kafka alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from deploy.local import child, environment
from deploy.local.account import SAME
from deploy.local.directory import Directory
from deploy.local.supervisor import read_status, tail
from tests.support.eventually import eventually_sync

READY_SECONDS = 300.0
"""The first start on a machine fetches Kafka."""

_CREATE_DATABASE = """CREATE DATABASE {} OWNER {}
    TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"""

KINDS = (
    "edge-serving",
    "edge-agent",
    "keys-worker",
    "tickets-worker",
    "usage-worker",
    "stats-worker",
    "keys-api",
    "tickets-api",
    "usage-api",
    "stats-api",
    "edge",
    "kafka",
    "postgres",
)
"""The names of all processes of a stack."""


CONTAINERS = {"local": False, "containers": True}[os.environ.get("KEYLEDGER_TEST_STACK", "local")]
"""Whether the tests run on containers (KEYLEDGER_TEST_STACK=containers) instead of the stack without them."""


class Processes(Protocol):
    """Processes that are kept running. `name` is a process's name in `status()`."""

    def status(self) -> dict[str, Any]:
        """As `keyledger status --json`."""
        ...

    def process(self, name: str) -> dict[str, Any]:
        """The row of one process in the status."""
        ...

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send the signal to the process that has this name now; its process id."""
        ...

    def pause(self, name: str) -> int:
        """The process and its children stand still; the process id."""
        ...

    def resume(self, name: str) -> int:
        """The process and its children go on; the process id."""
        ...

    def stopped(self, name: str) -> contextlib.AbstractContextManager[None]:
        """The process has ended in order, and nobody starts it, until the context ends; then returns when it is ready."""
        ...

    def wait_ready(self, deadline: float = 60.0) -> None:
        """Return when every part is ready, or raise AssertionError after `deadline` seconds."""
        eventually_sync(lambda: self.status()["ready"], deadline)

    def wait_restarted(self, name: str, before: int, deadline: float = 60.0) -> None:
        """Return when the process has another pid than `before` and is ready."""
        eventually_sync(lambda: is_another(self, name, before), deadline)

    def logs(self, name: str) -> str:
        """All that the process wrote."""
        ...


class Stack(Processes, Protocol):
    """A running Keyledger."""

    @property
    def url(self) -> str:
        """Address of the edge."""
        ...

    @property
    def env(self) -> dict[str, str]:
        """The variables that a user gets: KEYLEDGER_URL, KEYLEDGER_API_KEY, KEYLEDGER_KAFKA and a DSN for each service."""
        ...

    def start(self) -> None:
        """Start it and return when every part is ready."""
        ...

    def stop(self) -> None:
        """End all its processes and keep its data."""
        ...

    def cli(self, *arguments: str) -> str:
        """Run the `keyledger` command on it and return what it printed; AssertionError if it fails."""
        ...

    def holding(self, text: str) -> list[str]:
        """Which of its logs and of its files of data hold this text."""
        ...


def is_another(processes: Processes, name: str, before: int) -> bool:
    """Whether the process has another pid than `before` and is ready."""
    row = processes.process(name)
    return bool(row["ready"] and row["pid"] != before)


def secret_of(shown: str) -> str:
    """The secret in what a `keyledger` command that makes a key has shown."""
    return next(word for word in shown.split() if word.startswith("kl_"))


class LocalProcesses(Processes):
    """The processes of a directory's supervisor."""

    def __init__(self, directory: Path) -> None:
        self.directory = Directory(directory)

    def status(self) -> dict[str, Any]:
        return read_status(self.directory)

    def process(self, name: str) -> dict[str, Any]:
        rows = self.status()["processes"]
        return next(row for row in rows if row["name"] == name)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        def send() -> int:
            pid = self.process(name)["pid"]
            os.kill(pid, number)
            return int(pid)

        return eventually_sync(send)

    def kill_next(self, name: str, before: int, deadline: float = 300.0) -> int:
        """SIGKILL to the first process of this name that isn't `before` any more, ready or not; its process id."""

        def send() -> int | None:
            pid = self.process(name)["pid"]
            if pid in (None, before) or not is_alive(pid):
                return None
            os.kill(pid, signal.SIGKILL)
            return int(pid)

        return eventually_sync(send, deadline, 0.1)

    def pause(self, name: str) -> int:
        return self._signal_all(name, signal.SIGSTOP)

    def resume(self, name: str) -> int:
        return self._signal_all(name, signal.SIGCONT)

    def _signal_all(self, name: str, number: signal.Signals) -> int:
        """To the process and its children: PostgreSQL has one for each connection."""
        pid = int(self.process(name)["pid"])
        signal_all(family(pid), number)
        return pid

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        supervisor, before = self.directory.holder(), int(self.process(name)["pid"])
        assert supervisor is not None
        os.kill(supervisor, signal.SIGSTOP)
        try:
            os.kill(before, signal.SIGINT)
            eventually_sync(lambda: not is_alive(before))
            yield
        finally:
            os.kill(supervisor, signal.SIGCONT)
        self.wait_restarted(name, before)

    def logs(self, name: str) -> str:
        return self.directory.log(name).read_text()


class LocalStack(LocalProcesses):
    """The stack without containers, run by the `keyledger` command in a directory of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory)
        self._options = options

    @property
    def url(self) -> str:
        return self.env["KEYLEDGER_URL"]

    @property
    def env(self) -> dict[str, str]:
        return environment.read(self.directory.env)

    def start(self) -> None:
        """`keyledger up`, which ends with this process at the latest."""
        self.directory.create()
        log = self.directory.log("up")
        command = (sys.executable, "-m", "cli.main", "up", "--port", "0", "--dir", str(self.directory.root))
        running = start_with_me((*command, *self._options), log)
        eventually_sync(lambda: _is_ready(self.directory, running, log), READY_SECONDS)

    def stop(self) -> None:
        self.cli("down")

    def cli(self, *arguments: str) -> str:
        command = (sys.executable, "-m", "cli.main", *arguments, "--dir", str(self.directory.root))
        done = subprocess.run(command, capture_output=True, text=True, timeout=READY_SECONDS, check=False)
        if done.returncode != 0:
            raise AssertionError(
                f"keyledger {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def holding(self, text: str) -> list[str]:
        files = [path for path in self.directory.root.rglob("*") if path.is_file()]
        return [str(path) for path in files if text.encode() in path.read_bytes()]


@contextlib.contextmanager
def local_stack(directory: Path, *options: str) -> Iterator[LocalStack]:
    """A stack in this directory, as long as the context lives."""
    stack = LocalStack(directory, *options)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()


@dataclass(frozen=True)
class Servers:
    """Real PostgreSQL and Kafka: the administrator's DSN, Kafka's address, and the processes `postgres` and `kafka`."""

    postgres_dsn_admin: str
    kafka: str
    processes: Processes

    @contextlib.contextmanager
    def fresh_database(self) -> Iterator[str]:
        """DSN of a new, empty database with a role of its own that owns it; both are dropped at the end."""
        name = f"test_{secrets.token_hex(6)}"
        password = secrets.token_hex(12)
        role = sql.Identifier(name)
        with psycopg.connect(self.postgres_dsn_admin, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
            admin.execute(sql.SQL(_CREATE_DATABASE).format(role, role))
        try:
            yield _with_database(self.postgres_dsn_admin, name, password)
        finally:
            with psycopg.connect(self.postgres_dsn_admin, autocommit=True) as admin:
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(role))
                admin.execute(sql.SQL("DROP ROLE {}").format(role))


@contextlib.contextmanager
def local_servers(path: Path) -> Iterator[Servers]:
    """Run PostgreSQL and Kafka in this directory, as long as the context lives and at most as long as this process."""
    directory = Directory(path)
    directory.create()
    log = directory.log("supervisor")
    process = start_with_me((sys.executable, "-m", "deploy.local.servers", str(path)), log)
    try:
        eventually_sync(lambda: _is_ready(directory, process, log), READY_SECONDS)
        variables = environment.read(directory.env)
        yield Servers(variables["KEYLEDGER_POSTGRES"], variables["KEYLEDGER_KAFKA"], LocalProcesses(path))
    finally:
        process.terminate()
        process.wait(timeout=60)


def start_with_me(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command that gets SIGTERM when this process ends, however it ends; its output is appended to the log."""
    numbers = (os.getpid(), signal.SIGTERM, SAME.uid, SAME.gid, SAME.capability)
    with log.open("ab") as output:
        return subprocess.Popen(
            (sys.executable, "-I", "-S", child.__file__, *(str(int(number)) for number in numbers), *command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def family(pid: int) -> list[int]:
    """The process and all below it, parents first; a child that ends meanwhile is not among them."""
    found = [pid]
    for below in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += family(int(below))
    return found


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends the signal to each of them that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether the process runs: one that ended, but that nobody waited for, does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_ready(directory: Directory, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise SystemExit(f"it ended with {process.returncode}{tail(log)}")
    return bool(read_status(directory)["ready"])


def _with_database(dsn: str, name: str, password: str) -> str:
    address = urlsplit(dsn).netloc.rpartition("@")[2]
    return urlunsplit(("postgresql", f"{name}:{password}@{address}", f"/{name}", "", ""))
