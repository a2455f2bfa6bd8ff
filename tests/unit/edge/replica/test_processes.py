"""The replica between processes: a reader elsewhere sees what is written here, through growth, replacement and kills."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.edge.replica import files as replica_files
from services.edge.replica.reader import ReplicaReader
from services.edge.replica.writer import ReplicaWriter, StateBatch
from tests.support.eventually import eventually_sync
from tests.unit.edge.states import StateRecord, beat, hash_of, key

NOW = 10**15

_READER = """
import sys
from pathlib import Path
from services.edge.replica import files as replica_files
from services.edge.replica.reader import ReplicaReader
from tests.unit.edge.states import hash_of
replica_files.MAP_BYTES = 128 * 1024
reader = ReplicaReader(Path(sys.argv[1]))
for line in sys.stdin:
    status, pair = reader.status(), reader.lookup(hash_of(line.strip()))
    print(status.ready, pair and pair[0].version, flush=True)
"""

_WRITER = """
import sys
from pathlib import Path
from services.edge.replica.writer import ReplicaWriter, StateBatch
from tests.unit.edge.states import key
writer = ReplicaWriter.open(Path(sys.argv[1]), partitions=1)
offset = writer.offsets.get(0) or 0
while True:
    records = [key(offset + n, f"secret-{offset + n}") for n in range(20)]
    offset += 20
    writer.apply([StateBatch(0, records, offset)], 1)
    print(offset, flush=True)
"""


def run(program: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


class Elsewhere:
    """A reader in a process of its own."""

    def __init__(self, path: Path) -> None:
        self.process = run(_READER, path)

    def asks(self, secret: str) -> str:
        """`<ready> <version or None>` of the key that has the secret."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(secret + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    reader = Elsewhere(tmp_path)
    yield reader
    reader.process.kill()
    reader.process.communicate()


def apply(writer: ReplicaWriter, *records: StateRecord) -> None:
    writer.apply([StateBatch(0, records, (writer.offsets.get(0) or 0) + len(records))], NOW)


def test_a_reader_elsewhere_sees_each_change_at_once(tmp_path: Path, elsewhere: Elsewhere) -> None:
    assert elsewhere.asks("a") == "False None"
    writer = ReplicaWriter.open(tmp_path, partitions=1)
    assert elsewhere.asks("a") == "False None"
    for version in range(1, 20):
        apply(writer, key(7, "a", version=version), beat(0, 1))
        assert elsewhere.asks("a") == f"False {version}"
    writer.declare(ready=True)
    assert elsewhere.asks("a") == "True 19"


def test_the_map_grows_under_its_readers(tmp_path: Path, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_files, "MAP_BYTES", 128 * 1024)
    writer = ReplicaWriter.open(tmp_path, partitions=1)
    apply(writer, key(0, "secret-0"))
    writer.declare(ready=True)
    assert elsewhere.asks("secret-0") == "True 1"
    for number in range(1, 8001, 1000):
        apply(writer, *(key(n) for n in range(number, number + 1000)))
        assert elsewhere.asks(f"secret-{number + 999}") == "True 1"
    assert writer.meta.held == (8001,) and writer.offsets == {0: 8001}
    writer.close()
    assert ReplicaWriter.open(tmp_path, partitions=1).meta.held == (8001,)


def test_a_reader_elsewhere_follows_a_reload(tmp_path: Path, elsewhere: Elsewhere) -> None:
    writer = ReplicaWriter.open(tmp_path, partitions=1)
    apply(writer, key(7, "a"))
    writer.declare(ready=True)
    for version in range(2, 8):
        assert elsewhere.asks("a") == f"True {version - 1}"
        other = writer.renew()
        apply(other, key(7, "a", version=version))
        other.declare(ready=True)
        assert elsewhere.asks("a") == f"True {version - 1}"
        writer.swap(other)
        assert elsewhere.asks("a") == f"True {version}"


def test_a_killed_writer_leaves_states_and_offset_that_belong_together(tmp_path: Path) -> None:
    told = 0
    for _ in range(4):
        child = run(_WRITER, tmp_path)
        assert child.stdout is not None
        for _ in range(30):
            line = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
        told = int([line, *rest.split("\n")[:-1]][-1])
        writer = ReplicaWriter.open(tmp_path, partitions=1)
        offset = writer.offsets[0]
        assert offset >= told and offset % 20 == 0
        assert writer.meta.held == (offset,)
        reader = ReplicaReader(tmp_path)
        assert all(reader.lookup(hash_of(f"secret-{n}")) for n in range(offset))
        assert reader.lookup(hash_of(f"secret-{offset}")) is None
        reader.close()
        writer.close()


def test_what_a_killed_reader_held_is_freed(tmp_path: Path) -> None:
    writer = ReplicaWriter.open(tmp_path, partitions=1)
    apply(writer, key(7, "a"))
    reader = Elsewhere(tmp_path)
    assert reader.asks("a") == "False 1"
    assert writer.check_readers() == 0
    reader.process.kill()
    reader.process.communicate()
    assert eventually_sync(writer.check_readers, deadline=10) == 1
