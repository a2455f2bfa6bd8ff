"""The edge's copy of all key and owner states, as a serving process reads it: LMDB, without locks, shared by all processes.

Its files are in `files`, writing it in `writer`, the rules by which it changes in `rules`, what comes from Kafka in
`states`: a serving process needs only the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import lmdb
import msgspec

from services.edge.clock import SECOND, boot_id, boot_ns
from services.edge.domain import KeyState, OwnerState
from services.edge.memo import Memo
from services.edge.replica.files import META, Environment, Meta, current, decode_meta
from services.edge.replica.readiness import Beat

# Bytes of decoded states: those of some ten thousand keys. Tenants choose how large theirs are, and how often they change.
_MEMO = 32 * 1024 * 1024
_ENTRY = 1000
_FOUND_MAX = 20_000
# Who could not be told that its environment was replaced, since that is damaged, finds out after so long.
_LOOK_NS = SECOND
_decode_key = msgspec.msgpack.Decoder(KeyState).decode
_decode_owner = msgspec.msgpack.Decoder(OwnerState).decode


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


class ReplicaReader:
    """Looks keys up. Works from the start, also before there is a replica; to be used by one thread.

    `session` names this run of the edge, the same for all its processes: only what the agent declared ready in it is.
    `moment`, as of the last `status`, is another number whenever anything was written since: what was found at a moment is so
    as long as it lasts.
    """

    def __init__(self, path: Path, session: str = "") -> None:
        self._path = path
        self._session = session
        self._boot_id = boot_id()
        self._environment: Environment | None = None
        self._keys: Memo[bytes, KeyState] = Memo(_MEMO, _size)
        self._owners: Memo[bytes, OwnerState] = Memo(_MEMO, _size)
        self._found: dict[bytes, tuple[KeyState, OwnerState | None]] = {}
        self._found_in = -1
        self._seen: bytes | None = None
        self._status = NOTHING
        self._looked = 0
        self.moment = 0
        self._moment_id = -1

    def status(self) -> ReplicaStatus:
        """How the replica is now. Follows it to another environment. Cheap: for each turn of the event loop."""
        if boot_ns() - self._looked > _LOOK_NS:
            self._look()
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
                # As long as nothing was written since, what was found before is still so.
                moment = transaction.id()
                if moment != self._found_in:
                    self._found_in = moment
                    self._found.clear()
                found = self._found.get(key_hash) or self._find(environment, transaction, key_hash)
                if found is not None and len(self._found) < _FOUND_MAX:
                    self._found[key_hash] = found
                return found
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
        self._found_in = -1
        self._moment_id = -1
        self.moment += 1

    def _find(
        self, environment: Environment, transaction: lmdb.Transaction[bytes], key_hash: bytes
    ) -> tuple[KeyState, OwnerState | None] | None:
        get = transaction.get
        key_id = get(key_hash, None, environment.hashes)
        raw = None if key_id is None else get(key_id, None, environment.keys)
        if raw is None:
            return None
        key = self._keys.get(raw) or self._keys.revive(raw)
        if key is None:
            key = _decode_key(raw)
            self._keys.keep(raw, key)
        raw = get(key.owner_id.to_bytes(8, "big"), None, environment.owners)
        if raw is None:
            return key, None
        owner = self._owners.get(raw) or self._owners.revive(raw)
        if owner is None:
            owner = _decode_owner(raw)
            self._owners.keep(raw, owner)
        return key, owner

    def _look(self) -> None:
        self._looked = boot_ns()
        path = current(self._path)
        if self._environment is not None and path is not None and path.name != self._environment.path.name:
            self.close()

    def _read_meta(self) -> bytes | None:
        environment = self._environment or self._open()
        if environment is None:
            return None
        transaction = environment.begin()
        try:
            if transaction.id() != self._moment_id:
                self._moment_id = transaction.id()
                self.moment += 1
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


def _size(raw: bytes, _state: KeyState | OwnerState) -> int:
    return _ENTRY + 4 * len(raw)
