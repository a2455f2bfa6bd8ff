"""The edge's copy of all key and owner states, as a serving process reads it: LMDB, without locks, shared by all processes.

The replica is a directory of numbered environments, of which the file `current` names one. An environment has the named
databases `keys` and `owners` (id, 8 bytes big endian -> state, msgpack), `hashes` (32 bytes -> key id) and `meta`. An
environment that was replaced says so in its own meta, so its readers go on to the next. Writing is in `replica_writer`,
what comes from Kafka in `replica_states`: a serving process needs neither.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import lmdb
import msgspec

from services.edge.domain import KeyState, OwnerState
from services.edge.readiness import Beat
from services.edge.requestlog_format import boot_id

FORMAT = 1
META = b"meta"
_CACHED_STATES = 20_000
_NUMBERED = re.compile(r"\d+")

MAP_BYTES = 256 * 1024 * 1024
_READERS_MAX = 1024


class Meta(msgspec.Struct, frozen=True):
    """What an environment says of itself; written in the transaction of the states that it tells of.

    By partition: `held` keys and owners, `offsets` to read on from (None: never read), the last heartbeat's `beats`, and
    `beat_ns`, when it came (clock of boot `boot_id`; 0: not in this boot). `session`: the run of the edge in which it may
    be read (`ready`); `complete`: it once held all there was. `replaced`: another environment is current.
    """

    partitions: int
    held: tuple[int, ...]
    offsets: tuple[int | None, ...]
    beats: tuple[Beat | None, ...]
    beat_ns: tuple[int, ...]
    boot_id: str
    session: str
    cluster: str | None = None
    ready: bool = False
    complete: bool = False
    replaced: bool = False
    format: int = FORMAT


class ReplicaStatus(NamedTuple):
    """Whether the replica may be read, and how fresh it is.

    `fresh_ns`: when the last heartbeat came in the partition that has waited longest for one (boot clock); 0 when one had
    none in this boot. `complete`: it once held all there was. `beats`: each partition's last heartbeat.
    """

    ready: bool
    fresh_ns: int
    complete: bool
    beats: tuple[Beat | None, ...]


class ReplicaUnreadableError(Exception):
    """The replica, that was there, can't be read now."""


NOTHING = ReplicaStatus(ready=False, fresh_ns=0, complete=False, beats=())
_decode_meta = msgspec.msgpack.Decoder(Meta).decode
_decode_key = msgspec.msgpack.Decoder(KeyState).decode
_decode_owner = msgspec.msgpack.Decoder(OwnerState).decode


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


class ReplicaReader:
    """Looks keys up. Works from the start, also before there is a replica; to be used by one thread.

    `session` names this run of the edge, the same for all its processes: only what the agent declared ready in it is.
    """

    def __init__(self, path: Path, session: str = "") -> None:
        self._path = path
        self._session = session
        self._boot_id = boot_id()
        self._environment: Environment | None = None
        self._keys: dict[bytes, KeyState] = {}
        self._owners: dict[bytes, OwnerState] = {}
        self._seen: bytes | None = None
        self._status = NOTHING

    def status(self) -> ReplicaStatus:
        """How the replica is now. Follows it to another environment. Cheap: for each turn of the event loop."""
        try:
            raw = self._read_meta()
        except (lmdb.Error, ReplicaUnreadableError):
            self.close()
            return NOTHING
        if raw != self._seen:
            self._take(raw)
        return self._status

    def lookup(self, key_hash: bytes) -> tuple[KeyState, OwnerState | None] | None:
        """The key known by a SHA-256 hash and its owner, as of one moment; None when no key has it.

        Raises `ReplicaUnreadableError` when the replica, that was there, can't be read.
        """
        try:
            environment = self._environment or self._open()
            if environment is None:
                return None
            transaction = environment.begin()
            try:
                return self._find(environment, transaction, key_hash)
            finally:
                transaction.abort()
        except (lmdb.Error, msgspec.MsgspecError) as error:
            self.close()
            raise ReplicaUnreadableError(str(error)) from error

    def close(self) -> None:
        """Lets go of the environment; the next use opens it again."""
        if self._environment is not None:
            self._environment.close()
        self._environment, self._seen, self._status = None, None, NOTHING

    def _find(
        self, environment: Environment, transaction: lmdb.Transaction[bytes], key_hash: bytes
    ) -> tuple[KeyState, OwnerState | None] | None:
        get = transaction.get
        key_id = get(key_hash, None, environment.hashes)
        raw = None if key_id is None else get(key_id, None, environment.keys)
        if raw is None:
            return None
        key = self._keys.get(raw)
        if key is None:
            key = _remember(self._keys, raw, _decode_key(raw))
        raw = get(key.owner_id.to_bytes(8, "big"), None, environment.owners)
        if raw is None:
            return key, None
        owner = self._owners.get(raw)
        return key, _remember(self._owners, raw, _decode_owner(raw)) if owner is None else owner

    def _read_meta(self) -> bytes | None:
        environment = self._environment or self._open()
        if environment is None:
            return None
        transaction = environment.begin()
        try:
            return transaction.get(META, None, environment.meta)
        finally:
            transaction.abort()

    def _take(self, raw: bytes | None) -> None:
        meta = decode_meta(raw)
        if meta is not None and meta.replaced:
            self.close()
            raw = self._read_meta()
            meta = decode_meta(raw)
        self._seen = raw
        self._status = NOTHING if meta is None or meta.replaced else self._judge(meta)

    def _judge(self, meta: Meta) -> ReplicaStatus:
        fresh_ns = min(meta.beat_ns) if meta.boot_id == self._boot_id else 0
        return ReplicaStatus(meta.ready and meta.session == self._session, fresh_ns, meta.complete, meta.beats)

    def _open(self) -> Environment | None:
        path = current(self._path)
        if path is None:
            return None
        try:
            self._environment = Environment.open(path, readonly=True)
        except lmdb.Error as error:
            raise ReplicaUnreadableError(str(error)) from error
        return self._environment


State = TypeVar("State", KeyState, OwnerState)


def _remember(cache: dict[bytes, State], raw: bytes, state: State) -> State:
    if len(cache) >= _CACHED_STATES:
        cache.clear()
    cache[raw] = state
    return state
