"""What the edge's files have in common on disk."""

from __future__ import annotations

import os
from pathlib import Path


def allocate(path: Path, size: int) -> None:
    """Gives the file, which is made if it is missing, so many bytes of the disk, holes in it too. Raises `OSError`.

    What is written there later can't fail for want of space, on file systems that write in place.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
