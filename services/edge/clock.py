"""The clocks of the edge: windows and deadlines run on the boot clock, which no one sets; the wall clock dates things."""

from __future__ import annotations

import time

SECOND = 1_000_000_000
MILLISECOND = 1_000_000


def boot_ns() -> int:
    """Nanoseconds since the machine started, sleep included (CLOCK_BOOTTIME)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ns() -> int:
    """Nanoseconds since 1970, as the machine has it now."""
    return time.time_ns()
