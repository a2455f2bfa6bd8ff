"""Routes: the longest prefix wins, the platform's stay the platform's, and a wrong file says all that is wrong with it."""

from __future__ import annotations

from contextlib import nullcontext
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from services.edge.routes import PLATFORM, Route, RoutesError, Table, parse, platform
from services.keys.api.models import CreateApiKey

ORIGINS = dict.fromkeys(PLATFORM, "http://127.0.0.1:1")


def table(text: str) -> Table:
    return Table(platform(ORIGINS) + parse(text))


def route(name: str, prefix: str, more: str = "") -> str:
    return f'[routes.{name}]\nprefix = "{prefix}"\nupstream = "http://127.0.0.1:9"\n{more}\n'


def name(found: Route | None) -> str | None:
    return found.name if found else None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a", "a"),
        ("/a/", "a"),
        ("/a/x", "a"),
        ("/a/b", "ab"),
        ("/a/b/c", "ab"),
        ("/a/bc", "a"),
        ("/ab", None),
        ("/A", None),
        ("/", None),
        ("/api/v1/api-keys", "keys"),
        ("/api/v1/api-keys/7/usage", "keys"),
        ("/api/v1/tickets/1", "tickets"),
        ("/api/v1/dashboard/stats", "stats"),
        ("/api/v1/api-keysx", None),
    ],
)
def test_the_longest_prefix_of_whole_segments_wins(path: str, expected: str | None) -> None:
    assert name(table(route("a", "/a") + route("ab", "/a/b/")).match(path)) == expected


def test_a_route_may_claim_all_but_what_is_the_platforms() -> None:
    everything = table(route("all", "/"))
    assert name(everything.match("/x/y")) == "all"
    assert name(everything.match("/")) == "all"
    assert name(everything.match("/api/v1/tickets")) == "tickets"
    assert everything.match("/api/v1/usage") is None
    assert everything.match("/docs/x") is None
    assert name(everything.match("/docsx")) == "all"


def test_parameters_do_not_lead_around_a_permission() -> None:
    guarded = table(route("open", "/a") + route("guarded", "/a/admin", 'permission = "admin"'))
    assert name(guarded.match("/a/x;v=1")) == "open"
    for path in ("/a;v=1/admin", "/a/admin;v=1", "/a;/admin/x"):
        with pytest.raises(LookupError):
            guarded.match(path)


@given(st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4), st.sets(st.sampled_from(["/a", "/a/b", "/b", "/ab/a"])))
def test_the_match_is_that_of_a_plain_search(segments: list[str], prefixes: set[str]) -> None:
    path = "/" + "/".join(segments)
    routes = [Route(prefix, prefix, "http://h", "route:x") for prefix in prefixes]
    claims = [prefix for prefix in prefixes if path == prefix or path.startswith(prefix + "/")]
    assert name(Table(routes).match(path)) == max(claims, key=len, default=None)


@pytest.mark.parametrize(("length", "taken"), [(64, True), (65, False)])
def test_a_route_asks_for_what_a_key_can_have(length: int, taken: bool) -> None:
    name = "p" * length
    key = TypeAdapter(CreateApiKey)
    for ask in (
        lambda: parse(route("r", "/r", f'permission = "{name}"')),
        lambda: key.validate_python({"name": "x", "permissions": [name]}),
    ):
        with nullcontext() if taken else pytest.raises((RoutesError, ValidationError)):
            ask()


def test_permissions_by_method() -> None:
    (read,) = parse(route("r", "/r", 'permission = { GET = "r:read", "*" = "r:write" }'))
    assert [read.permission(method) for method in ("GET", "HEAD", "POST")] == ["r:read", "r:read", "r:write"]
    (one,) = parse(route("r", "/r", 'permission = "r"'))
    assert [one.permission(method) for method in ("GET", "HEAD", "POST")] == ["r", "r", "r"]
    (listed,) = parse(route("r", "/r", 'permission = { GET = "r", PUT = "w" }'))
    assert [listed.allows(method) for method in ("GET", "HEAD", "PUT", "POST")] == [True, True, True, False]
    assert listed.allowed() == ["GET", "HEAD", "PUT"]
    (free,) = parse(route("r", "/r"))
    assert free.allows("DELETE")
    assert free.permission("DELETE") is None


def test_a_route_has_its_own_bounds() -> None:
    own, default = parse(route("a", "/a", "body_max = 5\ntimeout = 2") + route("b", "/b"), body_max=7, timeout=9)
    assert (own.body_max, own.timeout, own.audience) == (5, 2, "route:a")
    assert (default.body_max, default.timeout) == (7, 9)


@pytest.mark.parametrize(
    "prefix",
    [
        "/api/v1/api-keys",
        "/api/v1/tickets/x",
        "/api/v1/usage",
        "/api/v1/owners/",
        "/docs",
        "/openapi.json",
        "/dashboard/x",
    ],
)
def test_the_platforms_paths_can_not_be_claimed(prefix: str) -> None:
    with pytest.raises(RoutesError, match="belongs to the platform"):
        parse(route("a", prefix))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[routes", "not TOML"),
        ("[route.a]", "unknown entry"),
        ("routes = 3", "must be tables"),
        (route("A", "/a").replace("[routes.A]", '[routes."A b"]'), "a name is"),
        (route("keys", "/a"), "a name is"),
        (route("a", "a"), "prefix"),
        (route("a", "/a//b"), "segment"),
        (route("a", "/a/../b"), "segment"),
        (route("a", "/a%20"), "prefix"),
        (route("a", "/a").replace("http:", "ftp:"), "upstream"),
        (route("a", "/a").replace(":9", ":9/base"), "upstream"),
        (route("a", "/a").replace("127.0.0.1", "u:p@h"), "upstream"),
        (route("a", "/a").replace("127.0.0.1", "a..b"), "upstream"),
        (route("a", "/a").replace("127.0.0.1", ".b"), "upstream"),
        (route("a", "/a").replace("127.0.0.1", "-b"), "upstream"),
        (route("a", "/a").replace("127.0.0.1", "b" * 64), "upstream"),
        (route("a", "/a").replace("127.0.0.1", "b." * 130 + "b"), "upstream"),
        (route("a", "/a").replace("127.0.0.1", "[:::1]"), "upstream"),
        (route("a", "/a").replace(":9", ":0"), "upstream"),
        (route("a", "/a").replace(":9", ":65536"), "upstream"),
        (route("a", "/a", "color = 1"), "color"),
        (route("a", "/a", "body_max = -1"), "body_max"),
        (route("a", "/a", 'body_max = "1"'), "body_max"),
        (route("a", "/a", "timeout = 0"), "timeout"),
        (route("a", "/a", 'public = "yes"'), "public"),
        (route("a", "/a", 'public = true\npermission = "p"'), "no permission"),
        (route("a", "/a", 'permission = { FETCH = "p" }'), "FETCH"),
        (route("a", "/a", 'permission = "P!"'), "permission"),
        (route("a", "/a") + route("b", "/a/"), "claimed by a too"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(RoutesError, match=message):
        parse(text)


def test_an_error_says_where_it_is_and_what_is_wanted_there() -> None:
    text = route("a", "/a", 'permission = { GET = "A B" }\npublc = true\n') + '[routes.b]\nprefix = "/b"\n'
    with pytest.raises(RoutesError) as raised:
        parse(text)
    permission, unknown, missing = raised.value.errors
    assert permission.startswith("a: permission is {'GET': 'A B'}, but must be such as")
    assert unknown.startswith("a: there is no setting 'publc'; a route has prefix, upstream,")
    assert missing.startswith("b: upstream is missing: a scheme, host and port")


def test_all_errors_come_at_once() -> None:
    with pytest.raises(RoutesError) as raised:
        parse(route("a", "x", "timeout = 0") + route("b", "/docs") + route("c", "/c", "color = 1") + "[other]\n")
    assert len(raised.value.errors) == 5


@given(st.from_regex(r"https?://(\[[0-9A-Fa-f:.]{1,12}\]|[a-z0-9.\-_]{1,12})(:[0-9]{1,5})?/?", fullmatch=True))
def test_an_origin_that_is_accepted_can_be_resolved_and_connected_to(origin: str) -> None:
    try:
        (found,) = parse(route("a", "/a").replace("http://127.0.0.1:9", origin))
    except RoutesError:
        return
    parts = urlsplit(found.upstream)
    host = parts.hostname or ""
    assert host.encode("idna")
    assert parts.port is None or 0 < parts.port < 65536


@pytest.mark.parametrize("host", ["h", "a-b.c_d.example", "a.", "127.0.0.1", "[::1]", "host.docker.internal"])
def test_usual_origins(host: str) -> None:
    (found,) = parse(route("a", "/a").replace("127.0.0.1:9", f"{host}:8080/"))
    assert found.upstream == f"http://{host}:8080"
