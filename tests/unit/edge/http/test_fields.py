"""No spelling of a header of ours gets through."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.edge.http.fields import (
    DROP,
    HOST,
    KEY,
    LENGTH,
    PASS,
    PLATFORM,
    REQUEST_ID,
    SECRET,
    Kinds,
    request_kinds,
    response_kinds,
)

request_kind, response_kind = request_kinds.__getitem__, response_kinds.__getitem__
OURS = [
    "Keyledger-Identity",
    "Keyledger-Anything",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Prefix",
    "X-Forwarded-User",
    "Forwarded",
    "X-Real-IP",
    "X-Correlation-ID",
    "X-HTTP-Method-Override",
    "X-Original-URL",
    "Proxy-Authorization",
    "Proxy",
    "TE",
    "Trailer",
    "Keep-Alive",
]
READ = {"X-API-Key": KEY, "X-Request-ID": REQUEST_ID, "Host": HOST, "Content-Length": LENGTH}


def spellings(name: str) -> list[str]:
    return [
        name,
        name.lower(),
        name.upper(),
        name.replace("-", "_"),
        name.replace("-", "."),
        name.replace("-", "_", 1),
        name.replace("-", "!").lower(),
        name.replace("-", "~").upper(),
    ]


@pytest.mark.parametrize("name", OURS)
def test_what_only_the_edge_may_say_is_dropped(name: str) -> None:
    assert {request_kind(spelt.encode()) for spelt in spellings(name)} == {DROP}


@pytest.mark.parametrize(("name", "kind"), READ.items())
def test_what_the_edge_reads_it_reads_in_one_spelling(name: str, kind: int) -> None:
    for spelt in spellings(name):
        expected = kind if spelt.lower() == name.lower() else DROP
        assert request_kind(spelt.encode()) == expected


@pytest.mark.parametrize("name", ["Accept", "X-Custom", "X_Custom", "traceparent", "Via"])
def test_the_rest_passes(name: str) -> None:
    assert request_kind(name.encode()) == PASS
    assert response_kind(name.encode()) == PASS


@pytest.mark.parametrize(
    ("name", "kind_of"), [("Authorization", request_kind), ("Cookie", request_kind), ("Set-Cookie", response_kind)]
)
def test_what_lets_somebody_in_elsewhere_passes_as_a_secret(name: str, kind_of: Callable[[bytes], int]) -> None:
    assert {kind_of(spelt.encode()) for spelt in spellings(name)} == {SECRET}


@pytest.mark.parametrize("name", ["X-RateLimit-Limit", "RateLimit", "RateLimit-Policy", "X-Request-ID", "Keep-Alive"])
def test_upstreams_do_not_speak_for_the_edge(name: str) -> None:
    assert {response_kind(spelt.encode()) for spelt in spellings(name)} == {DROP}


def test_headers_of_the_platform_are_known_as_such() -> None:
    assert response_kind(b"Keyledger-Propagation") == PLATFORM
    assert response_kind(b"Keyledger_Propagation") == DROP
    assert response_kind(b"Keyledger-Identity") == DROP


def judged(names: list[bytes]) -> Kinds:
    """Kinds that note in `names` whenever one had to be worked out."""

    def judge(name: bytes) -> int:
        names.append(name)
        return PASS

    return Kinds(judge)


def test_names_are_remembered_only_of_those_who_are_known() -> None:
    asked: list[bytes] = []
    kinds = judged(asked)
    for _ in range(2):
        assert kinds[b"X-A"] == PASS
    assert asked == [b"X-A"] * 2
    kinds.learn()
    assert kinds[b"X-A"] == PASS
    assert len(asked) == 2


def test_what_recurs_keeps_its_place_among_made_up_names() -> None:
    asked: list[bytes] = []
    kinds = judged(asked)
    for number in range(20_000):
        assert kinds[b"Host"] == kinds[b"X-Made-Up-%d" % number] == PASS
        kinds.learn()
    assert asked.count(b"Host") == 1


def test_long_names_do_not_fill_the_memory() -> None:
    kinds = judged([])
    for number in range(1000):
        assert kinds[b"%d-" % number + b"a" * 32_000] == PASS
        kinds.learn()
    assert sum(map(len, kinds)) <= 64 * 1024
