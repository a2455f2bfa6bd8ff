"""Ports of a stack: a block below the range that the kernel gives to clients, so that nobody takes one by chance meanwhile."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import StackError

_FIRST = 20_000
_LAST = 32_767
_BLOCK = 32
_ENDING_SECONDS = 5.0
_LISTENING = "0A"  # tcp_states.h


@dataclass(frozen=True)
class Ports:
    """The block's first port, which only reserves the rest, and the port of each name."""

    block: int
    by_name: dict[str, int]

    def __getitem__(self, name: str) -> int:
        return self.by_name[name]


def numbered(names: tuple[str, ...], block: int) -> dict[str, int]:
    """The port of each name in a block."""
    return dict(zip(names, range(block + 1, block + 1 + len(names)), strict=True))


@contextlib.contextmanager
def reserved(names: tuple[str, ...], remembered: int) -> Iterator[Ports]:
    """Ports for the names, in the remembered block if it is still free, else in another.

    Bound as long as the context lives, the first port keeps other stacks off the block.
    """
    others = random.sample(range(_FIRST, _LAST - _BLOCK, _BLOCK), 100)
    for first in (remembered, *others) if remembered else others:
        ports = numbered(names, first)
        guard = _bound(first)
        if guard is None:
            continue
        with guard:
            if all(becomes_free(port) if first == remembered else is_free(port) for port in ports.values()):
                yield Ports(first, ports)
                return
    raise StackError(f"No block of {_BLOCK} free ports was found between {_FIRST} and {_LAST}. End what uses them.")


def becomes_free(port: int) -> bool:
    """Whether the port is free now or within seconds: the processes of a stack that was just killed are still ending."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while not (free := is_free(port)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return free


def is_free(port: int) -> bool:
    """Whether a server on this machine could listen on this port now."""
    bound = _bound(port)
    if bound:
        bound.close()
    return bound is not None


def holder(port: int) -> str:
    """The process that listens on this port, as `process 12 (nginx)`; empty if it can't be seen, being another user's."""
    inodes = {
        line.split()[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in _lines(table)
        if line.split()[3] == _LISTENING and int(line.split()[1].rpartition(":")[2], 16) == port
    }
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(file.readlink()) in sockets for file in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return ""


def _lines(table: str) -> list[str]:
    try:
        return Path(table).read_text().splitlines()[1:]
    except OSError:
        return []


def _bound(port: int) -> socket.socket | None:
    candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        candidate.bind(("127.0.0.1", port))
        candidate.listen(1)
    except OSError:
        candidate.close()
        return None
    return candidate
