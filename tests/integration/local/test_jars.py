"""The jars of Kafka are the listed ones, all of them and no others, whoever put them there."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from pathlib import Path
from threading import Thread

import pytest

from deploy.local.errors import StackError
from deploy.local.jars import KAFKA, kafka_jars, verify
from tests.support.eventually import eventually_sync


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    jars = tmp_path / "cache" / f"kafka-{KAFKA}"
    jars.mkdir(parents=True)
    for name in ("a.jar", "b.jar"):
        (jars / name).write_text(name)
    return jars.parent


@pytest.fixture
def sums(tmp_path: Path, cache: Path) -> Path:
    lines = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("a.jar", "b.jar")]
    path = tmp_path / "sums"
    path.write_text("".join(lines))
    return path


def test_the_listed_jars_are_used_without_fetching(cache: Path, sums: Path) -> None:
    news: list[str] = []
    assert kafka_jars(news.append, cache, sums) == cache / f"kafka-{KAFKA}"
    assert news == []


def test_a_jar_that_differs_is_refused(cache: Path, sums: Path) -> None:
    (cache / f"kafka-{KAFKA}" / "a.jar").write_text("forged")
    with pytest.raises(StackError, match=r"a\.jar differs"):
        kafka_jars(lambda _: None, cache, sums)


def test_missing_and_additional_jars_are_refused_and_all_named(cache: Path, sums: Path) -> None:
    jars = cache / f"kafka-{KAFKA}"
    (jars / "a.jar").rename(jars / "c.jar")
    with pytest.raises(StackError, match=r"a\.jar is missing; c\.jar does not belong there"):
        verify(jars, sums)


def test_two_processes_do_not_fill_the_cache_at_once(cache: Path, sums: Path) -> None:
    jars = cache / f"kafka-{KAFKA}"
    filled = jars.rename(cache / "filled-by-the-other")
    news: list[str] = []
    found: list[Path] = []
    with (cache / f"kafka-{KAFKA}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = Thread(target=lambda: found.append(kafka_jars(news.append, cache, sums)))
        waiting.start()
        eventually_sync(lambda: news)
        assert "waiting" in news[0]
        shutil.copytree(filled, jars)
    waiting.join(30)
    assert found == [jars]
    assert len(news) == 1
