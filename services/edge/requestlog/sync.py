"""Syncing a request log to disk beside the thread that writes it, and holding its files and its lock until both are done.

A sync that failed is final: the kernel may have dropped what it could not write, so a later success would prove nothing
(PostgreSQL stops on it for the same reason). It is never tried again on that log.
"""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path

from services.edge.disk import sync_directory
from services.edge.requestlog.room import Room


class Syncer:
    """Owns the file descriptors of a log and makes its data durable within `interval` seconds of `wrote` and one sync.

    Syncs begin `interval` apart, and what is written during one is in the next; so where a sync takes longer than the
    interval, the bound is two syncs. At a new segment a sync is of both files and their directory. `interval` 0: in
    `wrote` itself. `failure` is set once and for all when a sync has failed; `lacking` says after each why nothing more
    may be written for want of `room`.
    """

    def __init__(self, directory: Path, lock: int, fd: int, interval: float, room: Room) -> None:
        self.failure: OSError | None = None
        self.lacking = ""
        self._room = room
        self._directory = directory
        self._lock = lock
        self._fd = fd
        self._retired: list[int] = []
        self._interval = interval
        self._switch = threading.Lock()
        self._dirty = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sync-{directory.name}", daemon=True)
        if interval:
            self._thread.start()

    def wrote(self) -> None:
        """Tells that there is something new in the file."""
        if not self._interval:
            self._sync()
        elif not self._dirty.is_set():
            self._dirty.set()

    def follow(self, fd: int) -> None:
        """Goes on with a new file; the one before is synced once more and closed."""
        with self._switch:
            self._retired.append(self._fd)
            self._fd = fd

    def end(self, *, wait: bool) -> None:
        """Syncs, closes the files and lets go of the lock; `wait` for that to have happened."""
        self._over.set()
        self._dirty.set()
        if not self._interval:
            self._finish()
        elif wait:
            self._thread.join()

    def _run(self) -> None:
        began = -math.inf
        while self.failure is None and not self._over.is_set():
            self._dirty.wait()
            self._over.wait(max(0.0, began + self._interval - time.monotonic()))
            began = time.monotonic()
            # Cleared before the sync: what is written during it must be synced again.
            self._dirty.clear()
            self._sync()
        self._over.wait()
        self._finish()

    def _finish(self) -> None:
        if self.failure is None:
            self._sync()
        for fd in (*self._retired, self._fd, self._lock):
            os.close(fd)

    def _sync(self) -> None:
        with self._switch:
            current, retired = self._fd, tuple(self._retired)
        try:
            for fd in (*retired, current):
                os.fdatasync(fd)
            if retired:
                sync_directory(self._directory)
            self.lacking = self._room.lacking()
        except OSError as error:
            self.failure = error
            return
        for fd in retired:
            self._retired.remove(fd)
            os.close(fd)
