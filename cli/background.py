"""A stack that outlives the command that started it: starting it with its news on the screen, and ending it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.stack import Options
from deploy.local.supervisor import read_status

_LOG = "supervisor"
_POLL_SECONDS = 0.05
_STOP_SECONDS = 15.0
"""What the supervisor itself may take to stop, besides its processes."""
_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\S+ ")


def start(directory: Directory, options: Options, say: Callable[[str], None]) -> None:
    """Start a supervisor in a session of its own and return when all is ready. Raises StackError if it gave up."""
    directory.create()
    if holder := directory.holder():
        raise StackError(
            f"The stack in {directory.root} is already running (process {holder}). See `keyledger status`."
        )
    log = directory.log(_LOG)
    with log.open("ab") as output, log.open() as news:
        news.seek(0, os.SEEK_END)
        process = _spawn(directory, options, output.fileno())
        try:
            while not _is_up(directory, process):
                _show(news.readlines(), say)
                if process.poll() is not None:
                    _show(news.readlines(), say)
                    raise StackError(f"The stack did not start. All of it: {log}")
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            say("Ending all processes ...")
            process.terminate()
            process.wait()
            raise
        _show(news.readlines(), say)


def stop(directory: Directory, say: Callable[[str], None]) -> bool:
    """End the directory's supervisor, and with it all its processes; whether there was one."""
    holder = directory.holder()
    if holder is None:
        return False
    # A supervisor of before says nothing of it.
    patience = read_status(directory).get("stop_seconds", 0) + _STOP_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while directory.holder() == holder:
        if time.monotonic() > deadline:
            say(f"It did not end within {patience:g} s: killed.")
            os.kill(holder, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(_POLL_SECONDS)
    return True


def _spawn(directory: Directory, options: Options, output: int) -> subprocess.Popen[bytes]:
    routes = ["--routes", str(options.routes.absolute())] if options.routes else []
    sample = ["--sample"] if options.sample else []
    command = [sys.executable, "-P", "-m", "deploy.local.stack", str(directory.root), "--port", str(options.port)]
    return subprocess.Popen(
        [*command, *routes, *sample],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        cwd=directory.root,
    )


def _is_up(directory: Directory, process: subprocess.Popen[bytes]) -> bool:
    return directory.holder() == process.pid and bool(read_status(directory)["ready"])


def _show(lines: list[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(_TIMESTAMP.sub("", line.rstrip("\n")))
