"""What `keyledger doctor` finds on a machine: each trouble made for real where it can be."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.doctor import Finding, Level, machine
from deploy.local import jars, platform, postgres
from deploy.local.directory import Directory
from tests.integration.local.test_supervisor import keyledger


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in found}


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "stack")


def test_a_machine_that_runs_these_tests_can_run_a_stack(directory: Directory) -> None:
    found = machine.checks(directory, 0, running=False)
    assert not [finding for finding in found if finding.level is Level.error]
    assert by_name(found)["postgresql"].what == "postgres (PostgreSQL) 18.4"


def test_who_has_the_port_is_named_and_the_exit_code_says_that_something_is_wrong(directory: Directory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = keyledger("doctor", "--dir", str(directory.root), "--port", str(port), "--json")
    assert done.returncode == 1
    found = {each["check"]: each for each in json.loads(done.stdout)["machine"]}
    assert found["port"]["level"] == "error"
    assert f"{port} is used by process {os.getpid()} (" in found["port"]["what"]
    assert "--port 0" in found["port"]["todo"]
    assert json.loads(done.stdout)["stack"][0]["level"] == "ok"


def test_jars_that_differ_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "keyledger" / f"kafka-{jars.KAFKA}"
    assert machine.kafka_jars().level is Level.ok
    place.mkdir(parents=True)
    (place / "forged.jar").write_bytes(b"x")
    found = machine.kafka_jars()
    assert found.level is Level.error
    assert "forged.jar does not belong there" in found.what
    assert found.todo == f"rm -r {place}"


def test_programs_that_may_not_be_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(postgres.binaries() / "postgres", tmp_path / "postgres")
    monkeypatch.setattr(postgres, "binaries", lambda: tmp_path)
    found = machine.postgresql()
    assert (found.level, "may not be executed" in found.what) == (Level.error, True)


def test_where_too_few_files_may_be_open_nothing_is_started(directory: Directory) -> None:
    command = f'ulimit -n 300; exec "$0" -m cli.main up --port 0 --dir {directory.root}'
    done = subprocess.run(
        ("bash", "-c", command, sys.executable), check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "may open only 300 files" in done.stderr) == (1, True)
    assert not directory.root.exists()


@pytest.mark.parametrize(
    ("system", "processor", "libc", "why"),
    [
        ("darwin", "arm64", "", "runs on Linux only"),
        ("linux", "riscv64", "glibc 2.36", "no servers for this processor"),
        ("linux", "x86_64", "", "musl"),
        ("linux", "x86_64", "glibc 2.17", "glibc 2.27 or newer"),
        ("linux", "aarch64", "glibc 2.27", ""),
    ],
)
def test_platforms(monkeypatch: pytest.MonkeyPatch, system: str, processor: str, libc: str, why: str) -> None:
    monkeypatch.setattr(platform.sys, "platform", system)
    monkeypatch.setattr(platform.platform, "machine", lambda: processor)
    monkeypatch.setattr(platform.os, "confstr", lambda _: libc)
    assert (why in machine.supported().what) if why else machine.supported().level is Level.ok
