"""Where the local stack runs: what its wheels were built for, and what of the kernel its processes ask."""

from __future__ import annotations

import os
import platform
import sys

LEAST_LIBC = (2, 27)
PYTHONS = ((3, 11), (3, 14))
_MACHINES = ("x86_64", "aarch64")
_CONTAINERS = "Run it in containers there: `docker compose up -d --wait`."


def description() -> str:
    """This machine in a few words, such as `Linux x86_64, glibc 2.36`."""
    return f"{platform.system()} {platform.machine()}, {_libc() or 'no glibc'}"


def unsupported() -> str:
    """Why the stack can't run here, and what to do; empty where it can."""
    if sys.platform != "linux":
        return f"The local stack runs on Linux only, and this is {platform.system()}. {_CONTAINERS}"
    if platform.machine() not in _MACHINES:
        return f"There are no servers for this processor ({platform.machine()}), only for {' and '.join(_MACHINES)}."
    if not (libc := _libc()):
        return f"The servers need glibc, and this system has another C library (Alpine's musl?). {_CONTAINERS}"
    if tuple(int(part) for part in libc.split()[-1].split(".")[:2]) < LEAST_LIBC:
        return f"The servers need glibc {'.'.join(map(str, LEAST_LIBC))} or newer, and this is {libc}. {_CONTAINERS}"
    return ""


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""
