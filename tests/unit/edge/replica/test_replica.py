"""The replica: the newest state of each key and owner, found by hash, with the offsets that it stands at."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.domain import KeyState, Outcome
from services.edge.domain import OwnerState as OwnerTwin
from services.edge.replica import writer as replica_writer
from services.edge.replica.reader import ReplicaReader
from services.edge.replica.readiness import Beat
from services.edge.replica.states import parse
from services.edge.replica.writer import ReplicaWriter
from shared.events import keys as published
from tests.unit.edge.states import MOMENT, NOW, StateRecord, apply, beat, event, found, hash_of, key, outcome, owner

PARTITIONS = 2


@pytest.fixture
def writer(tmp_path: Path) -> ReplicaWriter:
    return ReplicaWriter.open(tmp_path, partitions=PARTITIONS)


@pytest.fixture
def reader(tmp_path: Path, writer: ReplicaWriter) -> ReplicaReader:
    return ReplicaReader(tmp_path)


def test_a_key_is_found_by_its_hash_with_its_owner(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "a"))
    pair = reader.lookup(hash_of("a"))
    assert pair is not None and pair[1] is None
    apply(writer, owner(3))
    pair = reader.lookup(hash_of("a"))
    assert pair is not None
    assert (pair[0].id, pair[0].owner_id, pair[1]) == (7, 3, OwnerTwin(3, 1, 1, "active"))
    assert reader.lookup(hash_of("b")) is None


def test_only_a_newer_state_changes_anything(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "a", version=3))
    for older in (key(7, "b", version=3), key(7, "b", version=2), key(7, "b", version=9, epoch=0)):
        apply(writer, older)
        assert found(reader, "a") == (7, 3, "active") and found(reader, "b") is None
    apply(writer, key(7, "b", version=1, epoch=2))
    assert found(reader, "b") == (7, 1, "active") and found(reader, "a") is None


def test_a_hash_that_a_newer_state_no_longer_lists_finds_nothing(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "old"))
    apply(writer, key(7, "old", "new", version=2))
    assert found(reader, "old") == found(reader, "new") == (7, 2, "active")
    apply(writer, key(7, "new", version=3))
    assert found(reader, "old") is None and found(reader, "new") == (7, 3, "active")


def test_each_write_is_another_moment(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    moments: list[int] = []

    def moment() -> int:
        reader.status()
        return reader.moment

    for version in (1, 2):
        apply(writer, key(7, "a", version=version))
        moments.append(moment())
        assert moment() == moments[-1]
    other = writer.renew()
    apply(other, key(7, "a", version=3))
    writer.swap(other)
    moments.append(moment())
    reader.close()
    moments.append(moment())
    assert moments == sorted(set(moments))


def test_revoked_and_deleted_keys_stay_to_be_told_from_unknown_ones(
    writer: ReplicaWriter, reader: ReplicaReader
) -> None:
    apply(writer, owner(3), key(7, "a"), key(8, "b"))
    apply(writer, key(7, "a", version=2, status="revoked"), key(8, "b", version=2, status="deleted"))
    assert (outcome(reader, "a"), outcome(reader, "b")) == (Outcome.revoked, Outcome.deleted)
    assert writer.meta.held == (3, 0)


def test_a_tombstone_removes_the_state_and_its_hashes(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, owner(3), key(7, "a", "b"), key(8, "c"))
    apply(writer, (b"key-7", None), (b"key-9", None), (b"owner-3", None), (b"owner-9", None))
    assert found(reader, "a") is found(reader, "b") is None
    assert reader.lookup(hash_of("c")) is not None and outcome(reader, "c") is Outcome.not_ready
    assert writer.meta.held == (1, 0)


def test_a_hash_claimed_by_another_key_stays_with_it(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "a"), key(8, "a"), key(7, "b", version=2))
    assert found(reader, "a") == (8, 1, "active")


def test_streams_are_counted_where_they_lie(writer: ReplicaWriter) -> None:
    apply(writer, key(1), key(2), owner(3), partition=0)
    apply(writer, key(4), key(4, version=2), key(4, version=1), beat(1, 9), partition=1)
    assert writer.meta.held == (3, 1)


def test_all_of_a_state_arrives(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    data = published.KeyState(
        id=7,
        owner_id=3,
        status="inactive",
        permissions=("admin", "read"),
        limits=published.Limits(minute=5, hour=None, day=0),
        expires_at=MOMENT,
        addresses=("10.0.0.0/8",),
        hashes=(published.Hash(hash=hash_of("a").hex(), valid_until=MOMENT), published.Hash(hash=hash_of("b").hex())),
    )
    apply(writer, (b"key-7", event(data, "key-7", version=4, epoch=2)))
    pair = reader.lookup(hash_of("a"))
    assert pair is not None
    moment = int(MOMENT.timestamp()) * 10**9 + 123_456_000
    assert pair[0] == KeyState(
        7,
        3,
        2,
        4,
        "inactive",
        frozenset({"admin", "read"}),
        pair[0].limits,
        moment,
        ("10.0.0.0/8",),
        ((hash_of("a"), moment), (hash_of("b"), None)),
    )
    assert (pair[0].limits.minute, pair[0].limits.hour, pair[0].limits.day) == (5, None, 0)


published_states = st.builds(
    published.KeyState,
    id=st.integers(0, 2**63 - 1),
    owner_id=st.integers(0, 2**63 - 1),
    permissions=st.lists(st.text(max_size=5)).map(tuple),
    limits=st.builds(
        published.Limits, *[], **{name: st.none() | st.integers(0, 10**9) for name in ("minute", "hour", "day")}
    ),
    expires_at=st.none() | st.datetimes(min_value=datetime(1970, 1, 2), timezones=st.timezones()),  # noqa: DTZ001
    addresses=st.lists(st.text(max_size=5)).map(tuple),
    hashes=st.lists(st.builds(published.Hash, hash=st.binary(min_size=32, max_size=32).map(bytes.hex))).map(tuple),
)


@given(data=published_states, version=st.integers(1, 10**9), epoch=st.integers(0, 10**9))
@settings(deadline=None)
def test_the_fast_twin_says_what_the_published_class_says(data: published.KeyState, version: int, epoch: int) -> None:
    if data.id >= 10**18:
        return
    record = parse(b"key-%d" % data.id, event(data, f"key-{data.id}", version=version, epoch=epoch))
    assert record is not None
    state = record.value
    assert isinstance(state, KeyState)
    assert (state.id, state.owner_id, state.epoch, state.version) == (data.id, data.owner_id, epoch, version)
    assert (state.status, state.permissions, state.addresses) == (data.status, set(data.permissions), data.addresses)
    assert msgspec.structs.asdict(state.limits) == data.limits.model_dump()
    assert [known.hex() for known, _ in state.hashes] == [known.hash for known in data.hashes]
    seconds = None if state.expires_at_ns is None else state.expires_at_ns / 10**9
    assert seconds == (data.expires_at and pytest.approx(data.expires_at.timestamp()))


@dataclass
class Model:
    """The newest state by stream, as a dictionary."""

    streams: dict[bytes, tuple[tuple[int, int], str, tuple[str, ...]]] = field(default_factory=dict)

    def take(self, name: bytes, place: tuple[int, int] | None, status: str, secrets: tuple[str, ...]) -> None:
        if place is None:
            self.streams.pop(name, None)
        elif name not in self.streams or place > self.streams[name][0]:
            self.streams[name] = (place, status, secrets)


changes = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.none() | st.tuples(st.integers(0, 2), st.integers(1, 4)),
        st.sampled_from(["active", "inactive", "revoked", "deleted"]),
        st.sets(st.integers(1, 3), min_size=1, max_size=2),
    ),
    max_size=25,
)


@given(changes=changes, cuts=st.lists(st.integers(0, 25), max_size=4), again=st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_the_newest_states_are_held_however_the_records_are_cut_and_repeated(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, tuple[int, int] | None, str, set[int]]],
    cuts: list[int],
    again: int,
) -> None:
    path, model = tmp_path_factory.mktemp("replica"), Model()
    records: list[StateRecord] = []
    for number, place, status, numbers in changes:
        # A hash belongs to one key for ever, so each key has secrets of its own.
        secrets = tuple(f"{number}.{secret}" for secret in sorted(numbers))
        name = b"key-%d" % number
        model.take(name, place, status, secrets)
        epoch, version = place or (0, 0)
        records.append(key(number, *secrets, epoch=epoch, version=version, status=status) if place else (name, None))
    writer, reader = ReplicaWriter.open(path, partitions=1), ReplicaReader(path)
    for first, end in zip([0, *sorted(cuts)], [*sorted(cuts), 25], strict=True):
        apply(writer, *records[first:end])
    if all(place for _, place, *_ in changes):
        apply(writer, *records[:again])
    expected = {
        secret: (int(name[4:]), place[1], status)
        for name, (place, status, secrets) in model.streams.items()
        for secret in secrets
    }
    for number in range(1, 4):
        for secret in range(1, 4):
            name = f"{number}.{secret}"
            assert found(reader, name) == expected.get(name)
    assert writer.meta.held == (len(model.streams),)
    writer.close()
    reader.close()


def test_freshness_is_the_heartbeat_of_the_partition_that_waited_longest(
    writer: ReplicaWriter, reader: ReplicaReader
) -> None:
    apply(writer, beat(0, 0), now=NOW)
    assert reader.status().fresh_ns == 0
    apply(writer, beat(1, 0), partition=1, now=NOW + 5)
    assert reader.status().fresh_ns == NOW
    apply(writer, beat(0, 0, position=2), now=NOW + 9)
    assert reader.status().fresh_ns == NOW + 5
    assert reader.status().beats == (Beat(1, 2, 0), Beat(1, 1, 0))


def test_a_heartbeat_before_the_end_of_the_partition_is_history(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, beat(0, 4), at_end=False)
    apply(writer, beat(1, 0), partition=1)
    assert (reader.status().fresh_ns, reader.status().beats[0]) == (0, Beat(1, 1, 4))


def test_a_heartbeat_of_an_older_place_is_passed_over(writer: ReplicaWriter) -> None:
    apply(writer, beat(0, 5, position=9, epoch=2), now=NOW)
    for older in (beat(0, 1, position=8, epoch=2), beat(0, 1, position=99, epoch=1)):
        apply(writer, older, now=NOW + 1)
    assert (writer.meta.beats[0], writer.meta.beat_ns[0]) == (Beat(2, 9, 5), NOW)
    apply(writer, beat(0, 5, position=9, epoch=2), now=NOW + 2)
    assert writer.meta.beat_ns[0] == NOW + 2


def test_offsets_and_all_that_was_found_out_outlive_the_writer(tmp_path: Path, writer: ReplicaWriter) -> None:
    apply(writer, key(7, "a"), owner(3), beat(0, 2))
    writer.declare(complete=True, cluster="cluster-1")
    before = writer.meta
    writer.close()
    again = ReplicaWriter.open(tmp_path, partitions=PARTITIONS)
    assert again.meta == before
    assert (again.offsets, again.meta.cluster, again.meta.complete) == ({0: 3}, "cluster-1", True)
    assert found(ReplicaReader(tmp_path), "a") == (7, 1, "active")


def test_a_batch_that_fails_in_the_middle_has_changed_nothing(
    writer: ReplicaWriter, reader: ReplicaReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(writer, key(7, "a"))
    before = writer.meta

    def broken(_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(replica_writer, "_encode", broken)
    with pytest.raises(MemoryError):
        apply(writer, key(7, "b", version=2), key(8, "c"))
    monkeypatch.undo()
    assert writer.meta == before
    assert found(reader, "a") == (7, 1, "active") and found(reader, "b") is found(reader, "c") is None
