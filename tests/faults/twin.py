"""Processes of a stack seen from outside, and one more of a kind beside the stack's own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

import httpx2

from tests.support.eventually import eventually_sync
from tests.support.service import free_port
from tests.support.stack import LocalStack, family, is_alive, signal_all, start_with_me


def settings_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def readiness(port: str | int) -> dict[str, Any]:
    """What a process says of itself on its internal port; it may say that it is not ready."""
    found: dict[str, Any] = httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=5).json()
    return found


class Twin:
    """One more process like the one called `name` in the stack, with its settings but for `changes`.

    It can be started, ended and started again; at the latest it ends with this process.
    """

    def __init__(self, stack: LocalStack, name: str, log: Path, **changes: str) -> None:
        pid = stack.process(name)["pid"]
        self._command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        self._port = free_port()
        self.settings = settings_of(pid) | changes | {"KEYLEDGER_INTERNAL_PORT": str(self._port)}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)

    @property
    def ready(self) -> bool:
        """Whether it says that it is ready."""
        with contextlib.suppress(httpx2.HTTPError):
            return bool(readiness(self._port)["ready"])
        return False

    def checks(self) -> dict[str, Any]:
        """The details of its readiness."""
        found: dict[str, Any] = readiness(self._port)["checks"]
        return found

    def start(self) -> None:
        self._process = start_with_me(self._command, self._log, self.settings)

    def wait_ready(self, deadline: float = 120.0) -> None:
        eventually_sync(lambda: self.ready, deadline)

    def send(self, number: signal.Signals) -> None:
        """To the process and all below it."""
        assert self._process is not None
        signal_all(family(self._process.pid), number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, and waits for that and for those below it, which SIGKILL hits too."""
        if self._process is not None:
            below = family(self._process.pid)[1:] if self._process.poll() is None else []
            self._process.send_signal(number)
            if number is signal.SIGKILL:
                # Else they would end in good order, and say so: their parent's end is SIGTERM to them.
                signal_all(below, number)
            self._process.wait(timeout=60)
            eventually_sync(lambda: not any(map(is_alive, below)), 60)
            self._process = None

    def log(self) -> str:
        return self._log.read_text()


def second_edge(stack: LocalStack, directory: Path, data: Path | None = None) -> Twin:
    """Another edge of the stack, with an id and `data` of its own; its address is `url_of` it."""
    return Twin(
        stack,
        "edge",
        directory / "edge.log",
        KEYLEDGER_EDGE_DATA=str(data or directory / "edge"),
        KEYLEDGER_EDGE_PORT=str(free_port()),
    )


def url_of(edge: Twin) -> str:
    return f"http://127.0.0.1:{edge.settings['KEYLEDGER_EDGE_PORT']}"


def edge_id(edge: Twin) -> str:
    return (Path(edge.settings["KEYLEDGER_EDGE_DATA"]) / "edge-id").read_text().strip()
