"""The files of the replica, which its readers and its writer share: LMDB environments, and what each says of itself.

The replica is a directory of numbered environments, of which the file `current` names one. An environment has the named
databases `keys` and `owners` (id, 8 bytes big endian -> state, msgpack), `hashes` (32 bytes -> key id) and `meta`. An
environment that was replaced says so in its own meta, so its readers go on to the next.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import lmdb
import msgspec

from services.edge.disk import allocate
from services.edge.replica.readiness import Beat

FORMAT = 2
META = b"meta"
MAP_BYTES = 256 * 1024 * 1024
_READERS_MAX = 1024
# For so many of 64 bytes and LMDB's own: the table of readers is mapped, and a hole in it that the disk has no page for
# ends the process that touches it (SIGBUS).
_LOCK_BYTES = 72 * 1024
_NUMBERED = re.compile(r"\d+")


class Meta(msgspec.Struct, frozen=True):
    """What an environment says of itself; written in the transaction of the states that it tells of.

    By partition: `held` keys and owners, `offsets` to read on from (None: never read), the last heartbeat's `beats`, and
    `beat_ns`, when it came (clock of boot `boot_id`; 0: not in this boot), and of which of the heartbeats' `generations`
    what was read is (None: not read to the end yet). `session`: the run of the edge in which it may be read (`ready`);
    `complete`: it once held all there was. `replaced`: another environment is current.
    """

    partitions: int
    held: tuple[int, ...]
    offsets: tuple[int | None, ...]
    beats: tuple[Beat | None, ...]
    beat_ns: tuple[int, ...]
    generations: tuple[int | None, ...]
    boot_id: str
    session: str
    cluster: str | None = None
    ready: bool = False
    complete: bool = False
    replaced: bool = False
    format: int = FORMAT


_decode_meta = msgspec.msgpack.Decoder(Meta).decode


def decode_meta(raw: bytes | None) -> Meta | None:
    """The meta record; None when there is none that this version understands."""
    try:
        meta = _decode_meta(raw) if raw else None
    except msgspec.MsgspecError:
        return None
    return meta if meta and meta.format == FORMAT else None


def environments(path: Path) -> list[Path]:
    """All environments in the replica's directory, of which one is current."""
    return [child for child in path.iterdir() if _NUMBERED.fullmatch(child.name)]


def current(path: Path) -> Path | None:
    """The environment that is current in the replica's directory; None when there is none yet."""
    try:
        name = (path / "current").read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return path / name if _NUMBERED.fullmatch(name) else None


class Environment:
    """An LMDB environment with its named databases.

    LMDB forbids to open one twice in a process, so whoever opens it again shares it, and the last closes it.
    """

    _shared: ClassVar[dict[Path, Environment]] = {}

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self.path = path
        try:
            if not readonly:
                path.mkdir(exist_ok=True)
            if path.is_dir():
                allocate(path / "lock.mdb", _LOCK_BYTES)
        except OSError as error:
            raise lmdb.Error(str(error)) from error
        self.lmdb = lmdb.open(
            str(path),
            map_size=MAP_BYTES,
            max_dbs=4,
            max_readers=_READERS_MAX,
            readonly=readonly,
            create=not readonly,
            # A transaction that power loss undoes is read from Kafka again: its offsets are in it.
            metasync=False,
            max_spare_txns=4,
        )
        try:
            self.keys, self.owners, self.hashes, self.meta = (
                self.lmdb.open_db(name, create=not readonly) for name in (b"keys", b"owners", b"hashes", b"meta")
            )
        except BaseException:
            self.lmdb.close()
            raise
        self._users = 1

    @classmethod
    def open(cls, path: Path, *, readonly: bool) -> Environment:
        """Opens what is at `path`, making it if it is to be written. Raises `lmdb.Error`."""
        path = path.resolve()
        environment = cls._shared.get(path)
        if environment is None:
            environment = cls._shared[path] = cls(path, readonly=readonly)
        else:
            environment._users += 1
        return environment

    def close(self) -> None:
        """Lets go of it."""
        self._users -= 1
        if not self._users:
            self._shared.pop(self.path, None)
            self.lmdb.close()

    def begin(self) -> lmdb.Transaction[bytes]:
        """A reading transaction, of the newest there is; to be aborted soon, since it keeps old pages."""
        try:
            return self.lmdb.begin()
        except lmdb.MapResizedError:
            self.lmdb.set_mapsize(0)
        except lmdb.ReadersFullError:
            self.lmdb.reader_check()
        return self.lmdb.begin()
