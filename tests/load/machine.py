"""The machine that is measured on: which process runs on which core, what it costs, and what it holds in memory."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

SUBJECT_CORE = 0
"""Carries the system under test and nothing else of ours."""
LOAD_CORE = 1
"""Carries the load generator, the upstream, and all else that runs beside the system under test."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """Bytes of several processes: `pss` counts a page that n of them share as 1/n in each, `rss` in full in each."""

    pss: int
    rss: int


def describe() -> str:
    """What a reader must know of the machine, and when it was."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{moment}: {len(cores())} cores, {model}, Linux {platform.release()}, Python {platform.python_version()}"


def cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0)


def pin(pids: Iterable[int], core: int) -> None:
    """Puts all threads of the processes on one core; what they start later stays there too."""
    for pid in pids:
        for task in _tasks(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(task, {core})


def background(pids: Iterable[int]) -> None:
    """Lets the processes have what others leave of their core. Can't be taken back without being root."""
    sessions: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            sessions[os.getsid(pid)] = pid
            for task in _tasks(pid):
                os.setpriority(os.PRIO_PROCESS, task, 19)
    # Where the kernel shares out by session, niceness counts only within one: in our own they have it already, and the
    # generator is there too.
    sessions.pop(os.getsid(0), None)
    for pid in sessions.values():
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text("19")


def cpu_seconds(pids: Iterable[int]) -> float:
    """The processor time that the processes have used, their own and the kernel's for them."""
    fields = [_stat(Path(f"/proc/{pid}/stat")) for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / _TICKS


def variables(pid: int) -> dict[str, str]:
    """The environment that the process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def memory(pids: Iterable[int]) -> Memory:
    """What the processes hold now; one that ends meanwhile holds nothing."""
    pss = rss = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name == "Pss":
                    pss += int(value.split()[0]) * 1024
                elif name == "Rss":
                    rss += int(value.split()[0]) * 1024
    return Memory(pss, rss)


def most_memory(pid: int) -> float:
    """The most MB that the process has held since its start."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _tasks(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    return []


def _stat(path: Path) -> list[str]:
    """The fields after the name, which may have blanks: state, parent, ..."""
    return path.read_text().rpartition(")")[2].split()
