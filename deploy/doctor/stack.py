"""Checks of the stack of a directory: whether it runs as it should, and if not, which part and why."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from deploy.doctor import Finding, error, ok, warning
from deploy.doctor.data import consumers, databases, edge, kafka
from deploy.doctor.facts import TIMEOUT, Stack
from deploy.local import ports, probes
from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.routes import checked


async def checks(directory: Directory) -> list[Finding]:
    """All of them; of a stack that does not run only those of its files."""
    if not directory.state.exists() and not directory.postgres.exists():
        return [ok("stack", f"none in {directory.root} yet; `keyledger up` makes one")]
    try:
        stack = Stack(directory)
    except StackError as problem:
        return [error("stack", str(problem))]
    files = [secret_files(stack)]
    if not stack.status["processes"]:
        return [*files, not_running(stack)]
    parts = (servers_answer, processes, kafka, databases, consumers, edge, first_key, routes)
    found = await asyncio.gather(*(part(stack) for part in parts))
    return [*files, supervisor(stack), *(finding for each in found for finding in each)]


def secret_files(stack: Stack) -> Finding:
    """Whether others can read what is secret."""
    place = stack.directory
    secret = [place.env, place.state, place.secrets, *place.secrets.glob("*")]
    open_ones = [path for path in secret if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if not place.env.exists():
        return error("files", f"{place.env} is missing: it holds the first key", f"keyledger up {stack.option}")
    if open_ones:
        names = " ".join(map(str, open_ones))
        return error("files", f"other users can read secrets: {names}", f"chmod go= {names}")
    return ok("files", "env, state and secrets are yours alone")


def not_running(stack: Stack) -> Finding:
    """No supervisor, so there should be no process either."""
    left = {name: ports.holder(port) for name, port in stack.ports.items() if not ports.is_free(port)}
    if left:
        names = ", ".join(f"{holder or 'somebody'} on the port of {name}" for name, holder in left.items())
        return error(
            "supervisor",
            f"it does not run, but its ports are taken: {names}",
            "end these by their process id; `keyledger up` takes other ports if they stay",
        )
    return error("supervisor", "the stack does not run", f"keyledger up {stack.option}")


def supervisor(stack: Stack) -> Finding:
    """Who keeps the processes."""
    return ok("supervisor", f"process {stack.directory.holder()}, {stack.status['url']}")


async def servers_answer(stack: Stack) -> list[Finding]:
    """PostgreSQL and Kafka, each in its own protocol."""
    health = {
        "postgres": await probes.check(probes.postgres(stack.ports["postgres"])),
        "kafka": await probes.check(probes.kafka(stack.ports["kafka"])),
    }
    return [
        ok(name, "answers") if each.ready else error(name, each.detail or "does not answer", stack.logs(name))
        for name, each in health.items()
    ]


async def processes(stack: Stack) -> list[Finding]:
    """Each process of Keyledger: running, live, ready, and how often it was started again."""
    names = [row["name"] for row in stack.status["processes"] if f"{row['name']}-internal" in stack.ports]
    asked = await asyncio.gather(*(probes.check(probes.http(stack.internal(name))) for name in names))
    health = dict(zip(names, asked, strict=True))
    bad = [error(name, each.detail, stack.logs(name)) for name, each in health.items() if not each.ready]
    ended = {row["name"]: row["restarts"] for row in stack.status["processes"] if row["restarts"]}
    often = [
        warning(name, f"was started again {count} times since the stack started", stack.logs(name))
        for name, count in ended.items()
    ]
    ready = len(names) - len(bad)
    return [*bad, *often, ok("processes", f"{ready} of {len(names)} ready")]


async def first_key(stack: Stack) -> list[Finding]:
    """Whether the edge takes the key in `env`; it is one call of that key, counted as any."""
    secret = stack.variables.get("KEYLEDGER_API_KEY", "")
    async with httpx2.AsyncClient(timeout=TIMEOUT, headers={"X-API-Key": secret}) as client:
        try:
            answer = await client.get(f"{stack.variables['KEYLEDGER_URL']}/api/v1/dashboard/stats")
        except httpx2.HTTPError as problem:
            return [error("first key", f"the edge does not answer: {problem!r}", stack.logs("edge"))]
    code = answer.json().get("code", "") if "json" in answer.headers.get("content-type", "") else ""
    another = f"another one: keyledger key create --owner {stack.owner_id} --admin {stack.option}"
    match answer.status_code:
        case 200 | 429:
            return [ok("first key", "the edge takes it" + (", but it has used up its limit" if code else ""))]
        case 401:
            return [error("first key", "the edge refuses it (401): it was deleted, revoked, or has expired", another)]
        case 403:
            return [error("first key", f"the edge refuses it (403 {code}): it, or its owner, was deactivated", another)]
    behind = "the edge" if code == "not_ready" else "what is behind the edge"
    return [error("first key", f"{answer.status_code} {code}: {behind} is not ready", stack.logs("edge"))]


async def routes(stack: Stack) -> list[Finding]:
    """The routes file that the edge was started with: still valid, unchanged, and somebody listens at each upstream."""
    row = next((row for row in stack.status["processes"] if row["name"] == "edge"), None)
    file = _environment(row["pid"]).get("KEYLEDGER_EDGE_ROUTES") if row and row["pid"] else None
    if file is None:
        return []
    try:
        found = checked(Path(file))
    except StackError as problem:
        return [error("routes", str(problem), "mend it before the next start")]
    silent = [
        f"{each.name} ({each.upstream})" for each in found if not await asyncio.to_thread(_listens, each.upstream)
    ]
    if _changed(file, row["pid"] if row else 0):
        todo = f"keyledger down {stack.option}, and up again"
        return [warning("routes", f"{file} was changed after the edge started, which has not read it", todo)]
    if silent:
        return [warning("routes", f"nobody listens at the upstream of {', '.join(silent)}: 502", "start it")]
    return [ok("routes", f"{len(found)} in {file}, an upstream listens at each")]


def _changed(file: str, pid: int) -> bool:
    return Path(file).stat().st_mtime > _started(pid)


def _listens(origin: str) -> bool:
    parts = urlsplit(origin)
    try:
        socket.create_connection(
            (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), 1
        ).close()
    except OSError:
        return False
    return True


def _environment(pid: int) -> Mapping[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _started(pid: int) -> float:
    """The wall clock's time at which the process started (proc(5), field 22 of stat)."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return time.time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
