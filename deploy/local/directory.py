"""The directory of one stack (`--dir`): where its parts keep their files, its lock, and durable writes into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from deploy.local.errors import StackError

LEAST_FREE = 500 * 1024 * 1024
"""Bytes on the disk below which a stack is not started: its servers take 100 MB at once, and must not stop in the middle."""

_LOCK_SECONDS = 0.5
"""A look at the lock holds it for a moment, so who wants to keep it tries again for this long."""


class Directory:
    """Paths below one stack's directory. Nothing is made until `create`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.state = self.root / "state.json"
        self.status = self.root / "status.json"
        self.env = self.root / "env"
        self.lock = self.root / "lock"
        self.logs = self.root / "logs"
        self.secrets = self.root / "secrets"
        self.postgres = self.root / "postgres"
        self.kafka = self.root / "kafka"
        self.edge = self.root / "edge"
        self.sample_routes = self.root / "sample-routes.toml"

    def create(self) -> None:
        """Make the directory and those for logs, secrets and the edge's data."""
        try:
            for path in (self.root, self.logs, self.secrets, self.edge):
                path.mkdir(parents=True, exist_ok=True)
            self.secrets.chmod(0o700)
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise StackError(
                f"Can't make {self.root}: {error.strerror}. Choose another directory with --dir."
            ) from error
        if free < LEAST_FREE:
            raise StackError(
                f"Only {free // 1024**2} MB are free on the disk of {self.root}, and a stack needs "
                f"{LEAST_FREE // 1024**2} to start. Make room, or choose another disk with --dir."
            )

    def log(self, name: str) -> Path:
        """The log file of the process with this name."""
        return self.logs / f"{name}.log"

    def holder(self) -> int | None:
        """The process id of the supervisor that runs this directory, or None."""
        if not self.lock.exists():
            return None
        with self.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
        return None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory: one supervisor at a time. Raises StackError if another holds it."""
        with self.lock.open("a+") as file:
            if not _locked(file.fileno()):
                holder = self.holder()
                raise StackError(
                    f"The stack in {self.root} is already running (process {holder}). "
                    f"End it with `keyledger down --dir {self.root}`, or choose another directory with --dir."
                )
            # What a killed holder said of itself would be taken for this one's.
            self.status.unlink(missing_ok=True)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def purge(self) -> None:
        """Delete everything that a stack makes here, and the directory itself if nothing else is in it."""
        for path in (self.postgres, self.postgres.with_suffix(".new"), self.kafka, self.edge, self.logs, self.secrets):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.state, self.status, self.env, self.lock, self.sample_routes):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()


def _locked(descriptor: int) -> bool:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def write_durably(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace the file's content at once: after a crash, or a power loss, it has the old text or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
