"""The end of log files, and what is written to them from now on."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

_POLL_SECONDS = 0.2


def follow(paths: list[Path], lines: int, keep: bool, say: Callable[[str], None]) -> None:
    """Show the last lines of each file; with `keep`, go on until Ctrl-C. With several files each line names its own."""
    width = max(len(path.stem) for path in paths)
    files = [
        (path, f"{path.stem:<{width}} | " if len(paths) > 1 else "", path.open(errors="replace")) for path in paths
    ]
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        for _, prefix, file in files:
            stack.enter_context(file)
            for line in deque(file, maxlen=lines):
                say(prefix + line.rstrip("\n"))
        while keep:
            quiet = True
            for _, prefix, file in files:
                for line in file:
                    quiet = False
                    say(prefix + line.rstrip("\n"))
            if quiet:
                time.sleep(_POLL_SECONDS)
