"""The operating system account that PostgreSQL runs as: it refuses root, so root lends it another account."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import StackError

_CANDIDATES = ("postgres", "nobody")
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAP_SETPCAP = 8


@dataclass(frozen=True)
class Account:
    """User and group to change to, and the one capability kept over it; -1 for each means: change nothing."""

    uid: int = -1
    gid: int = -1
    capability: int = -1


SAME = Account()
"""Change nothing."""


def unprivileged(data: Path, *needed: Path) -> Account:
    """The account to run on this data directory; for root, one that may enter the directories above the needed files."""
    if os.geteuid() != 0:
        return SAME
    entry = _entry(data)
    if all(_open_to_all(path) for path in (data.parent, *needed)):
        return Account(entry.pw_uid, entry.pw_gid)
    return Account(entry.pw_uid, entry.pw_gid, _capability())


def _entry(data: Path) -> pwd.struct_passwd:
    if data.exists() and (owner := data.stat().st_uid) != 0:
        return pwd.getpwuid(owner)
    for name in _CANDIDATES:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StackError("PostgreSQL refuses to run as root, and there is no user `nobody`. Run this as an ordinary user.")


def _open_to_all(path: Path) -> bool:
    wanted = stat.S_IXOTH
    return all(each.stat().st_mode & wanted for each in (path, *path.parents))


def _capability() -> int:
    """A capability to pass closed directories with; containers often lack the weaker of the two."""
    permitted = int(_status_line("CapPrm"), 16)
    held = [each for each in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE) if permitted & (1 << each)]
    if held and permitted & (1 << _CAP_SETPCAP):
        return held[0]
    raise StackError(
        "PostgreSQL refuses to run as root, and its own user may not enter this directory: to let it in, root needs the "
        "capabilities CAP_SETPCAP and CAP_DAC_OVERRIDE, which were taken from it here. "
        "Run this as an ordinary user, or choose directories for the checkout and for --dir that others may enter."
    )


def _status_line(name: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
