"""What a request meets at the edge: who it is, what it may, what its upstream is told, and its one row in the log."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import jwt
import pytest

from shared.events.keys import Hash, Limits
from shared.ids import new_secret
from tests.integration.edge.upstream import plain
from tests.integration.edge.world import UNLIMITED, Raw, World, request
from tests.support.eventually import eventually_sync

JWKS = "/.well-known/keyledger/jwks.json"


def echoed(response) -> dict[str, list[str]]:  # type: ignore[no-untyped-def]
    """The headers that the upstream saw, by lower-case name."""
    found: dict[str, list[str]] = {}
    for name, value in response.json["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


# What upstreams are told


def test_an_upstream_learns_who_asks_and_nothing_of_the_key(world: World) -> None:
    key = world.key(permissions=("write", "read"), owner_id=1)
    response = world.get("/echo/who?a=%2F..//", key, X_Request_ID="client-7", Accept="text/plain")
    headers = echoed(response)
    assert response.json["target"] == "/echo/who?a=%2F..//"
    assert headers["accept"] == ["text/plain"]
    assert headers["host"] == [f"127.0.0.1:{world.upstream.port}"]
    assert headers["x-forwarded-for"] == ["127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["http"]
    assert headers["x-forwarded-host"] == ["edge.test"]
    assert headers["via"] == ["1.1 keyledger"]
    assert headers["x-request-id"] == [response.header("x-request-id")]
    assert headers["x-correlation-id"] == ["client-7"]
    assert "x-api-key" not in headers
    assert key not in json.dumps(response.json)
    (token,) = headers["keyledger-identity"]
    claims = jwt.decode(token, world.identity_key.public_key(), algorithms=["EdDSA"], audience="route:echo")
    assert (claims["sub"], claims["permissions"], claims["exp"] - claims["iat"]) == ("owner-1", ["read", "write"], 60)
    assert world.record(response.header("x-request-id")).correlation_id == "client-7"


def test_the_platforms_services_have_their_own_audience_and_headers(world: World, key: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeyledger-Missing: usage\r\nX-RateLimit-Limit: 1\r\n\r\n"
    world.upstream.behaviours |= {"/api/v1/tickets": plain(answer), "/echo/own-headers": plain(answer)}
    response = world.get("/api/v1/tickets", key)
    assert response.header("keyledger-missing") == "usage"
    assert response.header("x-ratelimit-limit") is None
    (token,) = world.upstream.of("/api/v1/tickets")[-1].values("keyledger-identity")
    jwt.decode(token, world.identity_key.public_key(), algorithms=["EdDSA"], audience="keyledger")
    assert world.get("/echo/own-headers", key).header("keyledger-missing") is None


FORGED = [
    "Keyledger-Identity",
    "keyledger_identity",
    "Keyledger.Identity",
    "KEYLEDGER-OWNER",
    "X-Forwarded-For",
    "X_Forwarded_For",
    "x.forwarded.for",
    "X-Forwarded-Host",
    "X-Forwarded-Prefix",
    "X-Forwarded-User",
    "Forwarded",
    "X-Real-IP",
    "X-Correlation-ID",
    "X_Request_ID",
    "X.Api.Key",
    "X_API_KEY",
    "Content_Length",
    "Transfer_Encoding",
    "X-HTTP-Method-Override",
    "X-Original-URL",
    "Proxy-Authorization",
    "TE",
    "Trailer",
    "Keep-Alive",
    "Upgrade",
]


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("named", [False, True])
def test_nobody_speaks_for_the_edge(world: World, key: str, name: str, named: bool) -> None:
    lines = [f"{name}: forged", f"{name.lower()}: forged too"]
    lines += [f"Connection: {name}, X-Forwarded-For, Keyledger-Identity, X-Request-ID"] if named else []
    with world.raw() as client:
        head = ["GET /echo/forged HTTP/1.1", "Host: h", f"X-API-Key: {key}", *lines, "", ""]
        client.send("\r\n".join(head).encode())
        headers = echoed(client.response())
    assert "forged" not in json.dumps(headers)
    for ours in ("keyledger-identity", "x-forwarded-for", "x-request-id", "host"):
        assert len(headers[ours]) == 1


def test_the_edge_makes_the_request_id(world: World, key: str) -> None:
    ids = {world.get("/echo/id", key, X_Request_ID="same").header("x-request-id") for _ in range(3)}
    assert len(ids) == 3
    for bad in ("a b", "", "ä", "x" * 129):
        with world.raw() as client:
            client.send(request("/echo/id", key)[:-2] + f"X-Request-ID: {bad}\r\n\r\n".encode())
            assert "x-correlation-id" not in echoed(client.response())


def test_via_grows_by_one(world: World, key: str) -> None:
    assert echoed(world.get("/echo/via", key, Via="1.0 fred"))["via"] == ["1.0 fred", "1.1 keyledger"]
    with world.raw() as client:
        client.send(f"GET /echo/via HTTP/1.0\r\nX-API-Key: {key}\r\n\r\n".encode())
        assert echoed(client.response())["via"] == ["1.0 keyledger"]


def test_a_response_without_a_date_gets_one(world: World, key: str) -> None:
    then = "Sun, 06 Nov 1994 08:49:37 GMT"
    answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
    world.upstream.behaviours |= {
        "/echo/dated": plain(f"{answer}date: {then}\r\n\r\n".encode()),
        "/echo/undated": plain(f"{answer}\r\n".encode()),
    }
    assert world.get("/echo/dated", key).header("date") == then
    came = parsedate_to_datetime(world.get("/echo/undated", key).header("date") or "")
    assert abs(datetime.now(UTC) - came) < timedelta(seconds=30)


def test_a_status_that_is_none_is_no_answer(world: World, key: str) -> None:
    world.upstream.behaviours["/echo/999"] = plain(b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n")
    answer = world.get("/echo/999", key)
    assert (answer.status, answer.json["code"]) == (502, "bad_gateway")
    assert world.record(answer.header("x-request-id")).status_code == 502


def test_phrases_of_the_platforms_services_are_the_edges(world: World, key: str) -> None:
    answer = b"HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 0\r\n\r\n"
    world.upstream.behaviours |= {"/api/v1/tickets/phrase": plain(answer), "/echo/phrase": plain(answer)}
    lines = []
    for path in ("/api/v1/tickets/phrase", "/echo/phrase"):
        with world.raw() as client:
            client.send(request(path, key))
            lines.append(client.exactly(33))
    assert lines == [b"HTTP/1.1 422 Unprocessable Conten", b"HTTP/1.1 422 Unprocessable Entity"]


def test_upstreams_hop_by_hop_headers_stay_behind(world: World, key: str) -> None:
    world.upstream.behaviours["/echo/hops"] = plain(
        b"HTTP/1.1 200 Fine\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Request-ID: theirs\r\n"
        b"RateLimit: x\r\nX-RateLimit-Reset: 1\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 2\r\n\r\nok"
    )
    response = world.get("/echo/hops", key)
    assert [name for name, _ in response.headers] == [
        "date",
        "set-cookie",
        "set-cookie",
        "content-length",
        "x-request-id",
    ]
    assert response.header("x-request-id") != "theirs"


# Who is let in


def refused(world: World, secret: str | None, path: str = "/echo/x") -> tuple[int, str]:
    response = world.get(path, secret)
    assert response.header("content-type") == "application/problem+json"
    assert response.header("cache-control") == "no-store"
    assert response.json["status"] == response.status
    assert response.json["request_id"] == response.header("x-request-id")
    assert (response.header("www-authenticate") == "ApiKey") is (response.status == 401)
    if response.status == 401:
        assert response.header("x-ratelimit-limit") is None
    return response.status, response.json["code"]


def test_without_a_good_key_all_look_alike_and_are_not_metered(world: World, key: str) -> None:
    before = len(world.records())
    unknown = new_secret("test").text
    secrets = [None, "x", key[:-1], key + "x", key.upper(), unknown, " " * 9, "kl_test_" + "a" * 39, key + "\xe4"]
    bodies = set()
    for secret in secrets:
        assert refused(world, secret) == (401, "key_invalid")
        body = world.get("/echo/x", secret).json
        bodies.add((body["title"], body["status"], body["code"]))
    assert len(bodies) == 1
    with world.raw() as client:
        client.send(request("/echo/x", key, X_API_Key=key))
        assert client.response().status == 401
    assert len(world.records()) == before


def test_final_states_are_401_others_403_and_each_is_metered(world: World) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    world.owner(2, "suspended")
    expected = {
        "revoked": (world.key(status="revoked"), 401, "key_invalid"),
        "deleted": (world.key(status="deleted"), 401, "key_invalid"),
        "expired": (world.key(expires_at=past), 401, "key_invalid"),
        "inactive": (world.key(status="inactive"), 403, "key_inactive"),
        "owner_suspended": (world.key(owner_id=2), 403, "key_inactive"),
        "address_refused": (world.key(addresses=("10.0.0.0/8",)), 403, "address_refused"),
    }
    for decision, (secret, status, code) in expected.items():
        path = f"/echo/refused/{decision}"
        assert refused(world, secret, path) == (status, code)
        (record,) = world.settled(path)
        assert (record.decision, record.status_code, record.route) == (decision, status, "echo")
        assert not world.upstream.of(path)


def test_a_key_whose_owner_is_not_held_is_not_judged(world: World) -> None:
    secret = world.key(owner_id=99)
    assert refused(world, secret, "/echo/ownerless") == (503, "not_ready")
    assert not world.settled("/echo/ownerless")
    world.owner(99)
    assert world.get("/echo/ownerless", secret).status == 200


def test_rotated_keys_have_two_secrets_for_a_while(world: World) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    old, new = new_secret("test"), new_secret("test")
    hashes = (Hash(hash=new.hash.hex()), Hash(hash=old.hash.hex(), valid_until=soon))
    world.state(500, old, 1)
    world.state(500, new, 2, hashes=hashes)
    assert world.get("/echo/x", old.text).status == 200
    assert world.get("/echo/x", new.text).status == 200
    eventually_sync(lambda: world.get("/echo/x", old.text).status == 401)
    assert datetime.now(UTC) >= soon
    assert world.get("/echo/x", new.text).status == 200


def test_a_change_of_state_counts_at_once(world: World) -> None:
    secret = new_secret("test")
    for version, (status, answer) in enumerate(
        [("active", 200), ("inactive", 403), ("active", 200), ("revoked", 401)], 1
    ):
        world.state(501, secret, version, status=status)
        assert world.get("/echo/x", secret.text).status == answer


def test_permissions_of_a_route(world: World) -> None:
    reader, admin = world.key(permissions=("guarded:read",)), world.key(permissions=("admin",))
    path = "/echo/guarded/x"
    assert world.get(path, reader).status == 200
    assert world.get(path, reader, "HEAD").status == 200
    refusal = world.get(path, reader, "PUT")
    assert (refusal.status, refusal.json["code"]) == (403, "permission_missing")
    assert world.record(refusal.header("x-request-id")).decision == "forbidden"
    assert world.get(path, admin, "PUT").status == 200
    missing = world.get(path, admin, "POST")
    assert (missing.status, missing.json["code"], missing.header("allow")) == (
        405,
        "method_not_allowed",
        "GET, HEAD, PUT",
    )
    assert world.record(missing.header("x-request-id")).decision == "allowed"
    assert world.get("/echo/%67uarded/x", world.key()).status == 403


# Limits


def test_a_limited_key_is_told_how_it_stands(world: World) -> None:
    secret = world.key(Limits(minute=3, hour=10, day=100))
    before = time.time()
    told = [world.get("/echo/limited", secret) for _ in range(5)]
    after = time.time()
    assert [response.status for response in told] == [200, 200, 200, 429, 429]
    assert [response.header("x-ratelimit-remaining") for response in told] == ["2", "1", "0", "0", "0"]
    assert {response.header("x-ratelimit-limit") for response in told} == {"3"}
    assert {response.header("ratelimit-policy") for response in told} == {
        '"minute";q=3;w=60, "hour";q=10;w=3600, "day";q=100;w=86400'
    }
    for response in told:
        assert before + 60 <= int(response.header("x-ratelimit-reset") or 0) <= after + 62
    refusal = told[-1]
    assert refusal.json["code"] == "rate_limited"
    assert abs(int(refusal.header("retry-after") or 0) + after - int(refusal.header("x-ratelimit-reset") or 0)) < 2
    assert told[0].header("retry-after") is None
    records = world.settled("/echo/limited")
    assert [record.decision for record in records] == ["allowed"] * 3 + ["rate_limited"] * 2
    assert [record.status_code for record in records] == [200] * 3 + [429] * 2


def test_refusals_consume_nothing_and_tell_of_the_limits(world: World) -> None:
    secret = world.key(Limits(minute=3, hour=10, day=100), permissions=())
    for _ in range(4):
        response = world.get("/echo/guarded/limits", secret)
        assert (response.status, response.header("x-ratelimit-remaining")) == (403, "3")
    assert world.get("/echo/limits", secret).header("x-ratelimit-remaining") == "2"


def test_the_edges_own_answers_to_admitted_requests_count(world: World) -> None:
    secret = world.key(Limits(minute=3, hour=10, day=100))
    assert [world.get("/unknown", secret).header("x-ratelimit-remaining") for _ in range(2)] == ["2", "1"]
    assert world.get("/nobody", secret).status == 502
    assert world.get("/unknown", secret).status == 429


def test_unlimited_keys_and_public_paths_are_told_nothing(world: World, key: str) -> None:
    for response in (world.get("/echo/x", key), world.get("/open/x"), world.get(JWKS)):
        assert not [name for name, _ in response.headers if "ratelimit" in name]


def test_a_flood_of_refusals_is_answered_but_has_few_rows(make) -> None:  # type: ignore[no-untyped-def]
    world = make()
    world.ready()
    secret = world.key(status="inactive")
    world.start().until_ready()
    answers = [world.get("/echo/flood", secret) for _ in range(120)]
    assert {answer.status for answer in answers} == {403}
    rows = len(world.settled("/echo/flood"))
    closed = [answer for answer in answers if answer.header("connection") == "close"]
    assert rows + len(closed) == len(answers)
    assert len(closed) > 0
    assert rows >= 20
    assert world.metric("keyledger_edge_unmetered_total", reason="inactive") == len(closed)
    world.stop()
    told = [json.loads(line) for line in (world.data / "out.log").read_text().splitlines() if "without rows" in line]
    assert sum(line["by_key"]["1"] for line in told) == len(closed)


# Routes


def test_unknown_paths_are_404_for_those_with_a_key(world: World, key: str) -> None:
    response = world.get("/unknown/path?x=1", key)
    assert (response.status, response.json["code"]) == (404, "not_found")
    record = world.record(response.header("x-request-id"))
    assert (record.route, record.endpoint, record.status_code, record.decision) == ("", "/unknown/path", 404, "allowed")
    assert refused(world, None, "/unknown/path") == (401, "key_invalid")


@pytest.mark.parametrize("path", ["/api/v1/usage", "/api/v1/owners", "/docs/x", "/dashboard"])
def test_what_the_platform_keeps_for_itself_is_unknown(world: World, key: str, path: str) -> None:
    assert world.get(path, key).status == 404


def test_the_key_set_needs_no_key(world: World) -> None:
    before = len(world.records())
    (jwk,) = world.get(JWKS).json["keys"]
    assert jwt.PyJWK(jwk).key.public_bytes_raw() == world.identity_key.public_key().public_bytes_raw()
    head = world.get(JWKS, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    response = world.get(JWKS, method="POST")
    assert (response.status, response.header("allow")) == (405, "GET, HEAD")
    assert len(world.records()) == before


def test_public_routes_know_nobody(world: World, key: str) -> None:
    before = len(world.records())
    for secret in (None, key, "nonsense"):
        headers = echoed(world.get("/open/x", secret))
        assert "x-api-key" not in headers
        assert "keyledger-identity" not in headers
    assert world.get("/open/x", method="POST", body=b"x" * 1001).status == 413
    assert len(world.records()) == before


def test_parameters_do_not_hide_a_segment(world: World, key: str) -> None:
    assert world.get("/echo;v=1/guarded/x", key).status == 400
    assert world.get("/echo/a;v=1", key).status == 200


def test_upgrades_are_not_done(world: World, key: str) -> None:
    response = world.get("/echo/x", key, Connection="Upgrade", Upgrade="websocket")
    assert (response.status, response.json["code"]) == (501, "not_implemented")
    plain = world.get("/echo/x", key, Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AA")
    assert plain.status == 200
    assert not {"upgrade", "http2-settings", "connection"} & set(echoed(plain))


# Rows


def test_a_row_has_it_all(world: World) -> None:
    secret = new_secret("test")
    world.state(700, secret, 5, owner_id=1, limits=UNLIMITED)
    before = time.time_ns()
    response = world.get("/echo/row?secret=1", secret.text, "POST", b"abc")
    record = world.record(response.header("x-request-id"))
    assert before <= record.time_ns <= time.time_ns()
    assert 0 < record.response_time < 5
    assert not record.noted or record.response_time > 0.03
    assert (record.key_id, record.key_version, record.owner_id) == (700, 5, 1)
    assert (record.endpoint, record.route, record.method, record.status_code) == ("/echo/row", "echo", "POST", 200)
    assert (record.decision, record.via, record.client_address) == ("allowed", "proxy", "127.0.0.1")
    assert record.correlation_id is None


def test_long_paths_are_capped_in_the_row(world: World, key: str) -> None:
    path = "/echo/" + "a" * 2000
    response = world.get(path, key)
    assert response.json["target"] == path
    assert world.record(response.header("x-request-id")).endpoint == path[:512]


def test_each_answer_seen_has_exactly_one_row(world: World, key: str) -> None:
    clients = [Raw(world.port) for _ in range(10)]
    ids: list[str | None] = []
    for number in range(30):
        for client in clients:
            client.send(request(f"/echo/many/{number}", key))
        ids += [client.response().header("x-request-id") for client in clients]
    counted = [record.request_id for record in world.records() if record.endpoint.startswith("/echo/many/")]
    assert sorted(counted) == sorted(map(str, ids))
    assert len(set(ids)) == 300
