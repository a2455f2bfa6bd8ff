"""A supervisor over small commands: `python -m tests.integration.local.fake_stack DIR`, until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from deploy.local.directory import Directory
from deploy.local.spec import Spec
from deploy.local.supervisor import Supervisor

SLEEPER = ("sleep", "1000")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
)


def specs() -> list[Spec]:
    """Commands that end at once on SIGTERM, and one that does not."""
    return [
        Spec("one", "api", SLEEPER),
        Spec("two", "worker", SLEEPER),
        Spec("stubborn", "edge", STUBBORN, stop_seconds=0.5),
    ]


async def main(directory: Directory) -> None:
    """Run them until SIGTERM."""
    supervisor = Supervisor(directory, lambda _: None)
    supervisor.end_on_signals()
    try:
        await supervisor.start(specs(), 30)
        await supervisor.until_all_ready(30)
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    finally:
        await supervisor.stop()


if __name__ == "__main__":
    place = Directory(Path(sys.argv[1]))
    place.create()
    with place.held():
        asyncio.run(main(place))
