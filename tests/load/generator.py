"""The load generator: wrk, one thread on the load's core, connections kept alive."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from tests.load import machine
from tests.load.servers import KEY_HEADER, PATH, Proxy

CONNECTIONS = 32
_REQUESTS = re.compile(r"^\s*(\d+) requests in ", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec:\s+([\d.]+)", re.MULTILINE)
_FAILURES = re.compile(r"^\s*(Non-2xx or 3xx responses: .*|Socket errors: .*)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What one run showed: answers, answers a second, and the proxy's processor time.

    `busy` is its share of one core; `microseconds` its time for each answer.
    """

    answers: int
    rate: float
    busy: float
    microseconds: float


def require() -> None:
    """Ends the program with advice when there is no wrk."""
    if shutil.which("wrk") is None:
        raise SystemExit("error: wrk, the load generator, is missing (on Debian and Ubuntu: apt install wrk)")


def run(proxy: Proxy, seconds: int) -> Run:
    """Loads the proxy for so long. Raises AssertionError when any answer failed, or none came."""
    header = ["-H", f"{KEY_HEADER}: {proxy.key}"] if proxy.key else []
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", *header, proxy.url + PATH]
    before = machine.cpu_seconds(proxy.pids)
    done = subprocess.run(
        ["taskset", "-c", str(machine.LOAD_CORE), *command],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    )
    used = machine.cpu_seconds(proxy.pids) - before
    found, rate = _REQUESTS.search(done.stdout), _RATE.search(done.stdout)
    assert found and rate and int(found[1]), f"{proxy.name}: nothing was answered:\n{done.stdout}{done.stderr}"
    failures = _FAILURES.search(done.stdout)
    assert failures is None, f"{proxy.name}: {failures and failures[1]}"
    answers = int(found[1])
    return Run(answers, float(rate[1]), used * float(rate[1]) / answers, used / answers * 1e6)
