"""A path that two servers could read differently is refused."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.http.message import BadMessage
from services.edge.http.paths import split, without_parameters

AMBIGUOUS = [
    "//",
    "/a//b",
    "/.",
    "/..",
    "/a/./b",
    "/a/../b",
    "/a/..",
    "/a/..;x/b",
    "/a/.;x/b",
    "/a/%2e%2e/b",
    "/a/%2E./b",
    "/a/.%2e/b",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a\\b",
    "/a/..\\b",
    "/a%00b",
    "/a%0ab",
    "/a%0d",
    "/a%1f",
    "/a%7f",
    "/a%",
    "/a%2",
    "/a%zz",
    "/a%c3",
    "/a%ff",
    "/a%c0%ae",
    "/a/%252e%252e/b",
    "/a%252fb",
    "/a%25252fb",
    "/a/%25%32%65/b",
    "/a#b",
    "/a?b#c",
    "**",
]
CLEAR = {
    "/": "/",
    "/a": "/a",
    "/a/b-c_d.e~f": "/a/b-c_d.e~f",
    "/a/...": "/a/...",
    "/a/..b": "/a/..b",
    "/a/.b": "/a/.b",
    "/a%20b": "/a b",
    "/a%C3%A4": "/aä",
    "/100%25": "/100%",
    "/a;b=c": "/a;b=c",
    "/a?b=//..%2e\\": "/a",
    "/a/": "/a/",
    "/{a}": "/{a}",
    "*": "*",
}


@pytest.mark.parametrize("target", AMBIGUOUS)
def test_ambiguous_paths_are_refused(target: str) -> None:
    with pytest.raises(BadMessage):
        split(target.encode())


@pytest.mark.parametrize(("target", "meant"), CLEAR.items())
def test_clear_paths_pass(target: str, meant: str) -> None:
    assert split(target.encode()) == (target.partition("?")[0], meant)


ATOMS = [
    "a",
    "admin",
    "/",
    ".",
    "..",
    "%2e",
    "%2f",
    "%5c",
    "\\",
    "%25",
    "2e",
    "2f",
    ";",
    "x",
    "%61",
    "%00",
    "//",
    "%c3%a4",
]


@given(st.lists(st.sampled_from(ATOMS), max_size=8))
def test_no_server_finds_its_way_elsewhere(atoms: list[str]) -> None:
    """However often a server decodes and normalises a path that passed, it stays where the edge saw it."""
    try:
        _, meant = split(("/" + "".join(atoms)).encode())
    except BadMessage:
        return
    twice = unquote(meant)
    for view in (meant, twice, unquote(twice)):
        assert posixpath.normpath(view).rstrip("/") == view.rstrip("/")
        assert "\\" not in view
        assert posixpath.normpath(without_parameters(view)).count("/") <= view.count("/")
        assert view.count("/") == meant.count("/")
