"""A command of the stack and how to run it: what it is called, how it is asked whether it is ready, and how it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

from deploy.local.account import SAME, Account
from deploy.local.probes import Probe

_CHILD = Path(__file__).with_name("child.py")
_LOG_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Spec:
    """One process: `stop` is the signal that ends it in order, within `stop_seconds`; `orphaned` the one that it gets
    when its supervisor was killed. `before` runs before each start. Without a probe it is ready when it runs."""

    name: str
    role: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    probe: Probe | None = None
    before: Callable[[], Awaitable[None]] | None = None
    account: Account = SAME
    stop: Signals = SIGTERM
    stop_seconds: float = 10.0
    orphaned: Signals = SIGKILL


RunJob = Callable[[Spec], Awaitable[None]]
"""Runs a job to its end. Raises StackError with the end of its log if it fails."""


async def start(spec: Spec, log: Path) -> Process:
    """Start the command with its output appended to the log, in a process group of its own: Ctrl-C is the supervisor's.

    Must be called in a thread that lives as long as the process should: the kernel ends it with that thread.
    """
    _rotate(log)
    account = spec.account
    numbers = (os.getpid(), spec.orphaned, account.uid, account.gid, account.capability)
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_CHILD), *(str(int(number)) for number in numbers), *spec.command),
            env=os.environ | dict(spec.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


async def run(spec: Spec, log: Path) -> int:
    """Run the command to its end and return its exit code; it is killed when this is cancelled."""
    process = await start(spec, log)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _rotate(log: Path) -> None:
    """Keep one older file, so that the logs of a stack that runs for long don't fill the disk at each restart."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
