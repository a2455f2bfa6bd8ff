"""The jars of Apache Kafka in the user's cache directory: resolved once from Maven Central, and checked at each use against
the SHA-256 sums beside this file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.local.errors import StackError

KAFKA = "4.3.0"
SUMS = Path(__file__).with_name("kafka.sha256")

_COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA}+org.slf4j:slf4j-simple:1.7.36"
"""Without the SLF4J binding Kafka logs nothing."""

_PROGRESS_EVERY = 10

Report = Callable[[str], None]


def kafka_jars(report: Report, cache: Path | None = None, sums: Path = SUMS) -> Path:
    """Directory with exactly the listed jars, filled if it is not there yet.

    Processes that want to fill it at once wait for each other. Raises StackError if a jar differs, is missing or too many.
    """
    cache = cache or cache_directory()
    jars = cache / f"kafka-{KAFKA}"
    if not jars.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"kafka-{KAFKA}.lock", report):
            if not jars.exists():
                _fill(jars, report, sums)
    verify(jars, sums)
    return jars


def cache_directory() -> Path:
    """Keyledger's part of the user's cache directory (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "keyledger"


def verify(jars: Path, sums: Path = SUMS) -> None:
    """Compare the directory with the list, in both directions. Raises StackError with all differences."""
    expected = _read(sums)
    found = {path.name: path for path in jars.iterdir()}
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} does not belong there" for name in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{name} differs" for name in sorted(expected.keys() & found.keys()) if _sum(found[name]) != expected[name]
    ]
    if wrong:
        raise StackError(
            f"The Kafka jars in {jars} are not the ones this version was tested with: {'; '.join(wrong)}. "
            "Delete that directory and try again; if it happens again, the download is not to be trusted."
        )


def _fill(jars: Path, report: Report, sums: Path) -> None:
    for leftover in jars.parent.glob(f".{jars.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    report(f"Fetching Apache Kafka {KAFKA} (44 MB, only the first time) ...")
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix=f".{jars.name}-") as temporary:
        fresh = Path(temporary) / "jars"
        fresh.mkdir()
        for jar in _resolve(Path(temporary), report, total=len(_read(sums))):
            shutil.copyfile(jar, fresh / jar.name)
        verify(fresh, sums)
        fresh.rename(jars)


def _resolve(temporary: Path, report: Report, total: int) -> list[Path]:
    """Let jgo resolve into a repository of our own: a half written jar in the user's could never be told from a forged one."""
    try:
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
        from jgo.env import EnvironmentBuilder  # noqa: PLC0415
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415
    except ImportError as error:
        raise StackError("jgo is not installed. Run `make setup`, or install `keyledger[local]`.") from error
    logging.getLogger("jgo").setLevel(logging.ERROR)
    context = MavenContext(
        resolver=PythonResolver(progress_callback=_progress(report, total)),
        repo_cache=temporary / "repository",
        remote_repos={"central": MAVEN_CENTRAL_URL},
    )
    try:
        return EnvironmentBuilder(context=context, cache_dir=temporary / "jgo").from_endpoint(_COORDINATES).all_jars
    except (OSError, RuntimeError) as error:
        raise StackError(
            f"Kafka could not be fetched from Maven Central: {error}. Check the network and try again."
        ) from error


def _progress(
    report: Report, total: int
) -> Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]:
    done = 0

    @contextlib.contextmanager
    def one_file(name: str, size: int) -> Iterator[Callable[[int], None]]:
        nonlocal done
        del size
        yield _ignore
        done += name.endswith(".jar")
        if name.endswith(".jar") and done % _PROGRESS_EVERY == 0:
            report(f"Fetching Apache Kafka {KAFKA}: {done} of {total} jars")

    return one_file


def _ignore(_bytes: int) -> None:
    """Takes jgo's news of each chunk: whole files are news enough."""


@contextlib.contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("Another process is fetching Apache Kafka; waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(sums: Path) -> dict[str, str]:
    """File name -> hexadecimal SHA-256, from the format of sha256sum(1)."""
    return {name: digest for digest, name in (line.split() for line in sums.read_text().splitlines())}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
