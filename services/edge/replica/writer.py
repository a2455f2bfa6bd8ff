"""Writing the replica: the agent's side. One transaction holds the states of a batch, the offsets after them and what the
heartbeats told, so that after a crash the copy and the place to read on from belong together.

What may be served when is decided elsewhere (`readiness`); this only keeps what was decided.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import lmdb
import msgspec
import structlog

from services.edge.clock import boot_id
from services.edge.disk import allocate, sync_directory
from services.edge.replica.files import META, Environment, Meta, current, decode_meta, environments
from services.edge.replica.rules import StateBatch, Update
from shared.settings import PartitionsChanged

__all__ = ["ReplicaWriter", "StateBatch"]

T = TypeVar("T")

_ROOM_BYTES = 4 * 1024 * 1024
_log = structlog.get_logger()
_encode = msgspec.msgpack.Encoder().encode


class ReplicaWriter:
    """The one writer of the replica. `open` it in one process at a time; used by one thread.

    `malformed` counts the records that made no sense, since it was opened.
    """

    def __init__(self, path: Path, environment: Environment, meta: Meta) -> None:
        self._path = path
        self._environment = environment
        self.meta = meta
        self.malformed = 0
        self._allocated = 0

    @classmethod
    def open(cls, path: Path, *, partitions: int, session: str = "") -> ReplicaWriter:
        """Opens the replica in the directory `path`, or begins one; damaged files are thrown away, Kafka has it all.

        In another `session` (run of the edge) than the last it is not ready until declared so. Raises
        `PartitionsChanged`; `lmdb.Error` or `OSError` when the disk won't have it, and may then be tried again.
        """
        path.mkdir(parents=True, exist_ok=True)
        self = cls._reopen(path) or cls._create(path, _fresh(partitions, session))
        if self.meta.partitions != partitions and not self.offsets:
            # Begun with a wrong setting, and nothing was ever read into it.
            self.close()
            self = cls._create(path, _fresh(partitions, session))
        if self.meta.partitions != partitions:
            held = self.meta.partitions
            self.close()
            raise PartitionsChanged(
                f"key-states has {partitions} partitions, the replica was made for {held}; "
                f"if the topic was made anew, delete {path}: it is a copy"
            )
        try:
            self._begin(session)
            if current(path) != path / self._environment.path.name:
                _point(path, self._environment.path)
            self._delete_others()
        except (lmdb.Error, OSError):
            self.close()
            raise
        return self

    @property
    def offsets(self) -> dict[int, int]:
        """Where to read each partition on from; one that was never read is missing."""
        return {number: offset for number, offset in enumerate(self.meta.offsets) if offset is not None}

    def apply(self, batches: Iterable[StateBatch], now_ns: int) -> None:
        """Applies records in one transaction; `now_ns` (boot clock) is when they came.

        A state not newer by (epoch, version) than the one held changes nothing; of a stream whose record makes no sense
        a state is kept that refuses. A heartbeat of an older place in the log than the last is passed over. Raises
        `lmdb.Error`, and has then done nothing.
        """
        batches = list(batches)

        def take(transaction: lmdb.Transaction[bytes]) -> Update:
            update = Update(self._environment, transaction, self.meta, now_ns)
            for batch in batches:
                update.take(batch)
            transaction.put(META, _encode(update.meta()), db=self._environment.meta)
            return update

        update = self._write(take)
        self.meta = update.meta()
        self.malformed += update.malformed

    def declare(self, *, ready: bool | None = None, complete: bool | None = None, cluster: str | None = None) -> None:
        """Writes what was found out: it may be read in this session, it once held all there was, whose offsets they are."""
        meta = self.meta
        ready = meta.ready if ready is None else ready
        complete = meta.complete if complete is None else complete
        self._change(msgspec.structs.replace(meta, ready=ready, complete=complete, cluster=cluster or meta.cluster))

    def settle(self, generations: Mapping[int, int]) -> None:
        """Writes of which generation these partitions are, which were read to their end."""
        if generations:
            known = tuple(generations.get(number, held) for number, held in enumerate(self.meta.generations))
            self._change(msgspec.structs.replace(self.meta, generations=known))

    def renew(self) -> ReplicaWriter:
        """An empty environment beside this one, to be loaded from the start of the topic and then `swap`ped in."""
        return ReplicaWriter._create(self._path, _fresh(self.meta.partitions, self.meta.session))

    def swap(self, other: ReplicaWriter) -> None:
        """Puts the environment of `other` in the place of this one's; its readers follow. `other` is used up by this."""
        old = self._environment
        _point(self._path, other._environment.path)
        self._change(msgspec.structs.replace(self.meta, replaced=True))
        self._environment, self.meta, self._allocated = other._environment, other.meta, other._allocated
        self.malformed += other.malformed
        old.close()
        shutil.rmtree(old.path, ignore_errors=True)

    def discard(self) -> None:
        """Throws away an environment that will not be swapped in."""
        self._environment.close()
        shutil.rmtree(self._environment.path, ignore_errors=True)

    def check_readers(self) -> int:
        """Frees what readers held whose processes were killed, else their pages are never used again; returns how many."""
        return self._environment.lmdb.reader_check()

    def close(self) -> None:
        """Lets go of the environment."""
        self._environment.close()

    @classmethod
    def _reopen(cls, path: Path) -> ReplicaWriter | None:
        found = current(path)
        if found is None:
            return None
        try:
            environment = Environment.open(found, readonly=False)
        except lmdb.Error as error:
            _log.warning("the replica is damaged and will be read anew", path=str(found), error=str(error))
            return None
        meta = _meta_of(environment)
        if meta is None or meta.replaced:
            environment.close()
            return None
        return cls(path, environment, meta)

    @classmethod
    def _create(cls, path: Path, meta: Meta) -> ReplicaWriter:
        number = max((int(name.name) for name in environments(path)), default=0) + 1
        environment = None
        try:
            environment = Environment.open(path / str(number), readonly=False)
            self = cls(path, environment, meta)
            self._change(meta)
        except lmdb.Error:
            # Each attempt on a full disk would take some of what is left.
            if environment is not None:
                environment.close()
            shutil.rmtree(path / str(number), ignore_errors=True)
            raise
        return self

    def _begin(self, session: str) -> None:
        meta = self.meta
        if meta.boot_id != boot_id():
            meta = msgspec.structs.replace(meta, boot_id=boot_id(), beat_ns=(0,) * meta.partitions)
        if meta.session != session:
            meta = msgspec.structs.replace(meta, session=session, ready=False)
        self.check_readers()
        self._keep_room()
        if meta != self.meta:
            self._change(meta)

    def _change(self, meta: Meta) -> None:
        self._write(lambda transaction: transaction.put(META, _encode(meta), db=self._environment.meta))
        self.meta = meta

    def _write(self, what: Callable[[lmdb.Transaction[bytes]], T]) -> T:
        """Does it in one transaction, in a larger map if it does not fit."""
        while True:
            try:
                with self._environment.lmdb.begin(write=True) as transaction:
                    done = what(transaction)
            except lmdb.MapFullError:
                bytes_now = self._environment.lmdb.info()["map_size"]
                self._environment.lmdb.set_mapsize(2 * bytes_now)
                _log.info("the replica's map grows", bytes=2 * bytes_now)
                continue
            self._keep_room()
            return done

    def _keep_room(self) -> None:
        """Sees that the next transactions have room on the disk: a revocation must come in when it is full."""
        used = (self._environment.lmdb.info()["last_pgno"] + 1) * self._environment.lmdb.stat()["psize"]
        if used + _ROOM_BYTES // 2 > self._allocated:
            with suppress(OSError):
                allocate(self._environment.path / "data.mdb", used + _ROOM_BYTES)
                self._allocated = used + _ROOM_BYTES

    def _delete_others(self) -> None:
        # Left by a reload that a crash cut short, perhaps between pointing to the new one and telling the old one's readers.
        for path in environments(self._path):
            if path.resolve() == self._environment.path:
                continue
            with suppress(lmdb.Error):
                environment = Environment.open(path, readonly=False)
                meta = _meta_of(environment) or self.meta
                ReplicaWriter(self._path, environment, meta)._change(msgspec.structs.replace(meta, replaced=True))
                environment.close()
            shutil.rmtree(path, ignore_errors=True)


def _fresh(partitions: int, session: str) -> Meta:
    nothing = (0,) * partitions
    return Meta(
        partitions=partitions,
        held=nothing,
        offsets=(None,) * partitions,
        beats=(None,) * partitions,
        beat_ns=nothing,
        generations=(None,) * partitions,
        boot_id=boot_id(),
        session=session,
    )


def _meta_of(environment: Environment) -> Meta | None:
    with environment.begin() as transaction:
        return decode_meta(transaction.get(META, None, environment.meta))


def _point(path: Path, environment: Path) -> None:
    # Atomically and durably: there is always a current one.
    new = path / "current.new"
    with new.open("w") as file:
        file.write(environment.name)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path / "current")
    sync_directory(path)
