"""Where a request log keeps its snapshot: two files in turn, of which the newest whole one counts.

The other one is written over, in space that it has already: so a snapshot can be replaced on a full disk, where it is
what lets segments go, and one that a crash cut short leaves the one before as it was. It is a row of frames with one
stamp as their ordinal: the snapshot without its counts, frames of counts, and an empty one. (One frame of any size would
be encoded in one piece, which stops the agent's other threads.) What an earlier snapshot left there has another stamp.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import msgspec
from typing_extensions import override

from services.edge.clock import wall_ns
from services.edge.disk import allocate, sync_directory
from services.edge.requestlog.entries import Position
from services.edge.requestlog.format import SNAPSHOT, Header, frames, pack

NAMES = ("snapshot", "snapshot.1")
_KEYS = 5000
_LEAST_BYTES = 16 * 1024

Buckets = Sequence[Sequence[tuple[int, int]]]


class Counts(Mapping[int, Buckets]):
    """Counts as they were written, each decoded when it is asked for: a start may have a million keys, and needs few."""

    def __init__(self, encoded: dict[int, msgspec.Raw]) -> None:
        self._encoded = encoded

    @override
    def __getitem__(self, key_id: int) -> Buckets:
        return _decode_buckets(self._encoded[key_id])

    @override
    def __contains__(self, key_id: object) -> bool:
        return key_id in self._encoded

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._encoded)

    @override
    def __len__(self) -> int:
        return len(self._encoded)


class Snapshot(msgspec.Struct, frozen=True):
    """The limiter's fold of a log up to `position`: by key and window the (last admission, count) of each sub-bucket.

    Times are on the boot clock of `header.boot_id`; with `wall_offset_ns` added, on the wall clock. `starts` has for each
    segment that was read the partitions' last ordinals before it, as they could be read.
    """

    header: Header
    position: Position
    wall_offset_ns: int
    counts: Mapping[int, Buckets]
    starts: Mapping[int, tuple[int, ...]] = {}


_decode = msgspec.msgpack.Decoder(Snapshot).decode
_decode_counts = msgspec.msgpack.Decoder(dict[int, msgspec.Raw]).decode
_decode_buckets = msgspec.msgpack.Decoder(Buckets).decode
_encode = msgspec.msgpack.Encoder().encode
_END = _encode({})


def newest(path: Path, *, counts: bool = True) -> Snapshot | None:
    """The snapshot of the log at `path`; None when there is none that can be read. Without `counts`: all but those."""
    found = [snapshot for name in NAMES if (snapshot := _read(path / name, counts))]
    return max(found, key=lambda snapshot: snapshot.position, default=None)


def prepare(path: Path) -> None:
    """Takes the space of the first snapshots of a log that is begun at `path`. Raises `OSError`."""
    for name in NAMES:
        allocate(path / name, _LEAST_BYTES)


def write(path: Path, snapshot: Snapshot) -> None:
    """Writes over the file that does not count, durably. Raises `OSError`; the newest is then what it was."""
    standing = [(found.position if (found := _read(path / name, counts=False)) else None, name) for name in NAMES]
    _, name = min(standing, key=lambda each: (each[0] is not None, each))
    fresh = not (path / name).exists()
    data = b"".join(_frames(snapshot))
    size = max(_LEAST_BYTES, 1 << len(data).bit_length())
    # Before a byte is written over: nothing of it may fail half way for want of space.
    allocate(path / name, size)
    fd = os.open(path / name, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if (written := os.pwrite(fd, data, 0)) < len(data):
            raise OSError(f"{written} of {len(data)} bytes of a snapshot were written")
        os.fdatasync(fd)
    finally:
        os.close(fd)
    if fresh:
        sync_directory(path)
    with suppress(OSError):
        # The next is the other's, and may be on a full disk.
        allocate(path / next(other for other in NAMES if other != name), size)


def _frames(snapshot: Snapshot) -> Iterator[bytes]:
    stamp = wall_ns()
    yield pack(SNAPSHOT, stamp, _encode(msgspec.structs.replace(snapshot, counts={})))
    items = iter(snapshot.counts.items())
    while chunk := dict(islice(items, _KEYS)):
        yield pack(SNAPSHOT, stamp, _encode(chunk))
    yield pack(SNAPSHOT, stamp, _END)


def _read(path: Path, counts: bool) -> Snapshot | None:
    try:
        found = frames(path.read_bytes())
        head = next(found, None)
        if head is None or head.content is None:
            return None
        snapshot = _decode(head.content)
        encoded: dict[int, msgspec.Raw] = {}
        # The snapshots of earlier versions are one frame without a stamp.
        if not head.ordinal:
            return snapshot
        last = False
        while not last:
            frame = next(found, None)
            if frame is None or frame.content is None or (frame.kind, frame.ordinal) != (SNAPSHOT, head.ordinal):
                return None
            last = frame.content == _END
            if counts:
                encoded |= _decode_counts(frame.content)
        return msgspec.structs.replace(snapshot, counts=Counts(encoded))
    except (FileNotFoundError, msgspec.DecodeError):
        return None
