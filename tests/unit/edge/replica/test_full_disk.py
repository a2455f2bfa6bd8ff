"""The replica on a full disk: nothing is damaged and nobody dies; a revocation still comes in; with space again it goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from services.edge.replica import writer as writer_module
from services.edge.replica.files import Environment, current, environments
from services.edge.replica.reader import ReplicaReader
from services.edge.replica.writer import ReplicaWriter
from tests.support.disks import fill, free_bytes, small_disk
from tests.unit.edge.states import apply, beat, found, key

MANY = [key(number, f"secret {number}") for number in range(100, 6000)]
_READERS = """
import sys, threading
from pathlib import Path
from services.edge.replica.files import Environment, current
environment = Environment.open(current(Path(sys.argv[1])), readonly=True)
held, done = threading.Barrier(301), threading.Event()
def read():
    transaction = environment.begin()
    held.wait()
    done.wait()
    transaction.abort()
threads = [threading.Thread(target=read) for _ in range(300)]
for thread in threads:
    thread.start()
held.wait(60)
done.set()
print("read")
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 16 * 1024 * 1024) as path:
        yield path


def test_what_does_not_fit_is_refused_whole_and_comes_when_there_is_space(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_ROOM_BYTES", 0)
    writer = ReplicaWriter.open(disk / "replica", partitions=2)
    apply(writer, key(7, "a"), beat(0, 1))
    ballast = fill(disk)
    before = writer.meta
    with pytest.raises(lmdb.Error):
        apply(writer, *MANY)
    assert writer.meta == before
    reader = ReplicaReader(disk / "replica")
    assert found(reader, "a") == (7, 1, "active") and found(reader, "secret 500") is None
    ballast.unlink()
    apply(writer, *MANY)
    assert found(reader, "secret 500") == (500, 1, "active")


def test_a_revocation_is_applied_and_a_new_key_too(disk: Path) -> None:
    writer = ReplicaWriter.open(disk / "replica", partitions=2)
    apply(writer, *MANY[:5000])
    writer.declare(ready=True, complete=True)
    fill(disk)
    reader = ReplicaReader(disk / "replica")
    for version in range(2, 60):
        apply(writer, key(7, "a", version=version), beat(0, version))
        apply(writer, key(100 + version, f"secret {100 + version}", version=2, status="revoked"))
        assert found(reader, "a") == (7, version, "active")
        assert found(reader, f"secret {100 + version}") == (100 + version, 2, "revoked")


def test_it_is_opened_again_by_another_run_of_the_edge(disk: Path) -> None:
    writer = ReplicaWriter.open(disk / "replica", partitions=2, session="one")
    apply(writer, key(7, "a"), beat(0, 1))
    writer.declare(ready=True, complete=True)
    writer.close()
    fill(disk)
    writer = ReplicaWriter.open(disk / "replica", partitions=2, session="two")
    writer.declare(ready=True)
    reader = ReplicaReader(disk / "replica", "two")
    assert reader.status().ready and found(reader, "a") == (7, 1, "active")
    writer.close()


def test_readers_that_come_then_do_not_die(disk: Path) -> None:
    """The table of readers is a file that is mapped: a hole in it has no page to be written to (SIGBUS)."""
    writer = ReplicaWriter.open(disk / "replica", partitions=2)
    apply(writer, key(7, "a"))
    fill(disk)
    done = subprocess.run(
        [sys.executable, "-c", _READERS, str(disk / "replica")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "read\n", (done.returncode, done.stderr)
    writer.close()


def test_one_that_can_not_be_begun_says_so_and_begins_when_there_is_space(disk: Path) -> None:
    ballast = fill(disk)
    for _ in range(3):
        with pytest.raises(lmdb.Error):
            ReplicaWriter.open(disk / "replica", partitions=2)
    assert environments(disk / "replica") == []
    ballast.unlink()
    writer = ReplicaWriter.open(disk / "replica", partitions=2)
    apply(writer, key(7, "a"))
    assert found(ReplicaReader(disk / "replica"), "a") == (7, 1, "active")
    path = current(disk / "replica")
    assert path is not None and Environment.open(path, readonly=False).lmdb.info()["last_pgno"] > 0
    assert free_bytes(disk) > 0
