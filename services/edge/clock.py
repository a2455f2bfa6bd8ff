"""The clocks of the edge: windows and deadlines run on the boot clock, which no one sets; the wall clock dates things."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
MICROSECOND = 1_000


boot_ns = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
"""Nanoseconds since the machine started, sleep included (CLOCK_BOOTTIME)."""
wall_ns = time.time_ns
"""Nanoseconds since 1970, as the machine has it now."""


def boot_id() -> str:
    """The kernel's id of this boot: boot-clock times mean something only together with it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
