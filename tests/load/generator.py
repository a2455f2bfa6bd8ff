"""The load generator (`generator.c`), one thread on the load's core, connections kept alive."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.load import machine
from tests.load.servers import KEY_HEADER, PATH, Proxy

CONNECTIONS = 32
_SOURCE = Path(__file__).with_name("generator.c")
_NUMBER = 16 * "X"
_FIELDS = f"Host: 127.0.0.1:{{port}}\r\n{KEY_HEADER}: {{key}}\r\n"


@dataclass(frozen=True)
class Workload:
    """A request as it is sent again and again; each run of sixteen X in it is another number each time."""

    name: str
    request: str


IDENTICAL = Workload("All requests alike", f"GET {PATH} HTTP/1.1\r\n{_FIELDS}\r\n")
VARIED = Workload(
    "Path, query, fields and answers different each time",
    f"GET /bench/items/{_NUMBER}?page={_NUMBER} HTTP/1.1\r\n{_FIELDS}X-Request-ID: {_NUMBER}\r\n"
    f"traceparent: 00-{_NUMBER}{_NUMBER}-{_NUMBER}-01\r\n\r\n",
)
WORKLOADS = (IDENTICAL, VARIED)


@dataclass(frozen=True)
class Run:
    """What one run showed: answers, answers a second, and the proxy's processor time.

    `busy` is its share of one core; `microseconds` its time for each answer. `latencies` are seconds: the median, of a hundred
    99 and 99.9, and the worst.
    """

    answers: int
    rate: float
    busy: float
    microseconds: float
    latencies: tuple[float, float, float, float]


class Generator:
    """The generator, built from its source. Ends the program with advice when there is no compiler.

    `answered` is how many answers there were in all, by the key that was sent.
    """

    def __init__(self, directory: Path) -> None:
        self.answered: Counter[str] = Counter()
        compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
        if compiler is None:
            raise SystemExit(
                "error: there is no C compiler for the load generator (on Debian and Ubuntu: apt install gcc)"
            )
        self._program = directory / "generator"
        subprocess.run([compiler, "-O2", "-o", str(self._program), str(_SOURCE), "-lm"], check=True)

    def load(
        self,
        proxy: Proxy,
        workload: Workload,
        *,
        seconds: float,
        connections: int = CONNECTIONS,
        rate: float = 0,
        core: int | None = machine.LOAD_CORE,
    ) -> Run:
        """Loads the proxy for so long: as fast as it answers, or with so many requests a second whatever it does.

        Raises AssertionError when any answer was not 200, or did not come.
        """
        request = workload.request.format(port=proxy.port, key=proxy.key)
        pinned = () if core is None else ("taskset", "-c", core)
        command = [str(each) for each in (*pinned, self._program, proxy.port, connections, seconds, rate)]
        before = machine.cpu_seconds(proxy.pids)
        done = subprocess.run(
            command,
            input=request,
            capture_output=True,
            text=True,
            timeout=seconds + 30,
            check=False,
        )
        used = machine.cpu_seconds(proxy.pids) - before
        assert done.returncode == 0, f"{proxy.name}: {done.stderr}"
        found = json.loads(done.stdout)
        self.answered[proxy.key] += found["answers"]
        reached, each = found["answers_counted"] / seconds, used / found["answers"]
        p50, p99, p999, worst = (microseconds / 1e6 for microseconds in found["latencies"])
        return Run(found["answers"], reached, each * reached, each * 1e6, (p50, p99, p999, worst))
