"""Becomes a command that ends with its parent: `python -I -S child.py PARENT SIGNAL UID GID CAPABILITY COMMAND...`.

The kernel sends SIGNAL to this process when the thread that started it ends (PR_SET_PDEATHSIG, see prctl(2)); it keeps that
over exec, but forgets it when credentials change, so the user is changed first. It is a program of its own, because code
between fork and exec of a process with threads may deadlock. UID, GID and CAPABILITY are -1 to keep what is. CAPABILITY
is kept over the change of user, for a user that may not enter the directories above its files. It counts for access(2) too,
by which PostgreSQL looks for its programs: the kernel answers that one without the capabilities of a user other than root,
unless it was told to leave them as they are when a user changes (SECBIT_NO_SETUID_FIXUP, see capabilities(7)).
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _become(uid: int, gid: int, capability: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    if capability >= 0:
        _must(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    os.setuid(uid)
    if capability >= 0:
        _keep_only(capability)


def _keep_only(capability: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    bit = 1 << capability
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    _must(_libc.capset(header, sets))
    _must(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0))


def main(arguments: list[str]) -> None:
    """Found a process group, change the user, bind the own life to the parent's, and exec the command. Does not return."""
    parent, signal, uid, gid, capability = (int(each) for each in arguments[:5])
    command = arguments[5:]
    os.setpgid(0, 0)
    if uid >= 0:
        _become(uid, gid, capability)
    _must(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0))
    if os.getppid() != parent:
        sys.exit("the parent ended before its child began")
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
