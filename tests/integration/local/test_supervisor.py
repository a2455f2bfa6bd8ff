"""The supervisor over small commands: what it starts again and when, how it ends, and what its own death leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.process import EX_CONFIG, GIVE_UP_AFTER
from deploy.local.spec import Spec
from deploy.local.supervisor import Supervisor, read_status
from tests.integration.local.fake_stack import SLEEPER, STUBBORN
from tests.support.eventually import eventually, eventually_sync
from tests.support.stack import is_alive

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    place = Directory(tmp_path / "stack")
    place.create()
    return place


@asynccontextmanager
async def supervised(directory: Directory, news: list[str], *specs: Spec) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(directory, news.append)
    with directory.held():
        try:
            await supervisor.start(specs, 30)
            await supervisor.until_all_ready(30)
            yield supervisor
        finally:
            await supervisor.stop()


def row(directory: Directory, name: str) -> dict[str, Any]:
    return next(each for each in read_status(directory)["processes"] if each["name"] == name)


async def test_a_dead_process_is_started_again_and_counted(directory: Directory) -> None:
    news: list[str] = []
    async with supervised(directory, news, Spec("sleeper", "worker", SLEEPER)):
        first = row(directory, "sleeper")
        assert first["ready"] and first["restarts"] == 0
        os.kill(first["pid"], signal.SIGKILL)
        await eventually(lambda: row(directory, "sleeper")["restarts"] == 1 and row(directory, "sleeper")["ready"])
        second = row(directory, "sleeper")
        assert second["pid"] != first["pid"]
        assert read_status(directory)["ready"]
    assert "sleeper was ended by SIGKILL; starting it again in 0.1 s" in news
    assert "sleeper is ready again" in news


async def test_the_delay_before_a_restart_doubles(directory: Directory) -> None:
    news: list[str] = []
    async with supervised(directory, news, Spec("short", "worker", ("sleep", "0.01"))):
        await eventually(lambda: row(directory, "short")["restarts"] >= 3)
    delays = [line.rpartition(" in ")[2] for line in news if "starting it again" in line]
    assert delays[:3] == ["0.1 s", "0.2 s", "0.4 s"]


async def test_a_process_that_never_gets_ready_fails_the_start_with_the_end_of_its_log(directory: Directory) -> None:
    command = ("sh", "-c", "echo the reason; exit 3")

    async def never() -> Any:
        raise ConnectionRefusedError

    with pytest.raises(StackError, match="the reason"):
        async with supervised(directory, [], Spec("broken", "api", command, probe=never)):
            pass
    assert directory.log("broken").read_text().count("the reason") >= GIVE_UP_AFTER


async def test_wrong_settings_fail_the_start_at_once(directory: Directory) -> None:
    command = ("sh", "-c", f"echo KEYLEDGER_KAFKA: missing; exit {EX_CONFIG}")

    async def never() -> Any:
        raise ConnectionRefusedError

    with pytest.raises(StackError, match="KEYLEDGER_KAFKA: missing"):
        async with supervised(directory, [], Spec("broken", "api", command, probe=never)):
            pass
    assert directory.log("broken").read_text().count("missing") == 1


async def test_a_failed_job_shows_the_end_of_its_log(directory: Directory) -> None:
    supervisor = Supervisor(directory, lambda _: None)
    with pytest.raises(StackError, match=r"migrate ended with code 1[\s\S]*no such table"):
        await supervisor.run(Spec("migrate", "job", ("sh", "-c", "echo no such table; exit 1")))


async def test_processes_end_in_the_reverse_order_of_their_start(directory: Directory) -> None:
    order = directory.root / "order"

    def spec(name: str, role: str) -> Spec:
        script = f"trap 'echo {name} >> {order}; exit 0' TERM; while :; do sleep 0.02; done"
        return Spec(name, role, ("sh", "-c", script), probe=None)

    roles = [spec("database", "postgres"), spec("log", "kafka"), spec("service", "api"), spec("door", "edge")]
    async with supervised(directory, [], *roles):
        await eventually(lambda: all(_traps_term(row(directory, each.name)["pid"]) for each in roles))
    assert order.read_text().split() == ["door", "service", "log", "database"]


def _traps_term(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught & (1 << (signal.SIGTERM - 1)))


async def test_a_process_that_ignores_its_end_is_killed(directory: Directory) -> None:
    news: list[str] = []
    async with supervised(directory, news, Spec("stubborn", "worker", STUBBORN, stop_seconds=0.2)):
        pid = row(directory, "stubborn")["pid"]
    assert not is_alive(pid)


async def test_status_says_not_ready_once_it_ended(directory: Directory) -> None:
    async with supervised(directory, [], Spec("sleeper", "worker", SLEEPER)):
        assert read_status(directory)["ready"]
    assert read_status(directory) == {"url": "", "ready": False, "stop_seconds": 0, "processes": []}


def test_killing_the_supervisor_leaves_no_process(directory: Directory) -> None:
    fake = fake_stack(directory)
    pids = [each["pid"] for each in read_status(directory)["processes"]]
    assert len(pids) == 3 and all(is_alive(pid) for pid in pids)
    fake.kill()
    fake.wait()
    eventually_sync(lambda: not any(is_alive(pid) for pid in pids), deadline=10)
    assert read_status(directory)["processes"] == []


def test_a_second_supervisor_of_a_directory_is_refused(directory: Directory) -> None:
    fake = fake_stack(directory)
    try:
        for extra in ((), ("--detach",)):
            up = keyledger("up", "--dir", str(directory.root), "--port", "0", *extra)
            assert up.returncode == 1
            assert f"already running (process {fake.pid})" in up.stderr
        assert read_status(directory)["ready"]
        down = keyledger("down", "--dir", str(directory.root))
        assert down.returncode == 0, down.stderr
        assert fake.wait(timeout=30) == 0
    finally:
        fake.kill()


def fake_stack(directory: Directory) -> subprocess.Popen[bytes]:
    fake = subprocess.Popen((sys.executable, "-m", "tests.integration.local.fake_stack", str(directory.root)))
    eventually_sync(lambda: read_status(directory)["ready"])
    return fake


def keyledger(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "cli.main", *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
