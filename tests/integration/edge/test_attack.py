"""Under attack: the corpus on real sockets, before real servers. None of them sees anything else than the edge decided on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest

from services.edge.http import paths
from services.edge.requestlog.writer import Record
from tests.attack import corpus, witnesses
from tests.attack.corpus import Case, filled
from tests.attack.witnesses import Witness
from tests.integration.edge.upstream import Upstream, plain, then_close
from tests.integration.edge.world import World, request
from tests.support.eventually import eventually_sync

_ROUTES = """
[routes.{name}]
prefix = "/{name}"
upstream = "http://127.0.0.1:{port}"

[routes.{name}-guarded]
prefix = "/{name}/guarded"
upstream = "http://127.0.0.1:{port}"
permission = "nobody:has"
"""
_numbers = itertools.count()
_TAIL = '\n[routes.echo]\nprefix = "/echo"\nupstream = "{origin}"\n'


class Attack:
    """One edge, and the witnesses behind it by name."""

    def __init__(self, world: World, behind: dict[str, Witness]) -> None:
        self.world = world
        self.behind = behind
        self.key = world.key()
        self._told: dict[str, int] = {}

    def send(self, data: bytes, then: bytes, method: str) -> tuple[int, bool]:
        """The status of the first answer (0: none), and whether what came `then` was answered with 200 on the same connection."""
        with self.world.raw() as client:
            try:
                client.send(data + then)
                first = client.response(method)
            except ConnectionError:
                return 0, False
            try:
                return first.status, client.response().status == 200
            except ConnectionError:
                return first.status, False

    def seen(self, name: str) -> list[dict[str, Any]]:
        """What a witness saw since it was asked last."""
        witness = self.behind[name]
        # It writes after it answered, one after the other.
        marker = f"/{name}/marker/{next(_numbers)}"
        self.world.get(marker, self.key)
        seen = eventually_sync(lambda: _until(marker, witness.seen()), 10)
        found = seen[self._told.get(name, 0) :]
        self._told[name] = len(seen) + 1
        return found


def _until(marker: str, seen: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    targets = [each["target"] for each in seen]
    return seen[: targets.index(marker)] if marker in targets else None


@pytest.fixture(scope="module")
def attack(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    directory: Path = tmp_path_factory.mktemp("attack")
    with ExitStack() as stack:
        behind = {name: stack.enter_context(witnesses.witness(name, directory)) for name in witnesses.names()}
        routes = "".join(_ROUTES.format(name=name, port=witness.port) for name, witness in behind.items())
        world = World(directory / "edge", upstream, routes + _TAIL.format(origin=upstream.origin))
        stack.callback(world.stop)
        world.ready()
        world.start().until_ready()
        yield Attack(world, behind)


def wrong(attack: Attack, name: str, seen: dict[str, Any], records: dict[str, Record]) -> str | None:
    """What a witness saw otherwise than the edge decided, if anything."""
    fields: dict[str, list[str]] = {}
    for field, value in seen["headers"]:
        if value:
            fields.setdefault(field, []).append(value)
    (request_id,) = fields.get("x-request-id", ["none"])
    record = records.get(request_id)
    if record is None:
        return "it has no row"
    if (record.method, record.endpoint, record.decision) != (
        seen["method"],
        seen["target"].partition("?")[0],
        "allowed",
    ):
        return f"the row says {record.method} {record.endpoint} {record.decision}"
    if record.route != name or f"{seen['path']}/".startswith(f"/{name}/guarded/"):
        return f"the route was {record.route}"
    if seen["path"] != paths.split(seen["target"].encode())[1]:
        return f"its path is {seen['path']!r}"
    if "x-api-key" in fields or len(fields.get("content-length", [])) + len(fields.get("transfer-encoding", [])) > 1:
        return "its head has the key, or two lengths"
    (token,) = fields["keyledger-identity"]
    jwt.decode(token, attack.world.identity_key.public_key(), algorithms=["EdDSA"], audience=f"route:{name}")
    return None


def strange(attack: Attack, name: str, seen: list[dict[str, Any]]) -> list[str]:
    """What a witness saw otherwise than the edge decided, or twice, in words."""
    rows = [record for record in attack.world.records() if record.endpoint.startswith(f"/{name}")]
    records = {record.request_id: record for record in rows}
    found = [(each, wrong(attack, name, each, records)) for each in seen]
    return [f"{each['method']} {each['target']}: {why}" for each, why in found if why]


def told(seen: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return sorted((each["method"], each["target"], each["body"]) for each in seen)


def expected(case: Case, path: str, key: str) -> list[tuple[str, str, str]]:
    """What an upstream sees of a case and of the request behind it."""
    found = [("GET", f"{path}/next", "")] if case.kept else []
    if case.status == 200 and not case.answered_here:
        target, body = (filled(text, path, key).decode("latin-1") for text in (case.target, case.body_is))
        found.append((case.sent(), target, body))
    return sorted(found)


@pytest.mark.parametrize("name", witnesses.names())
def test_no_server_sees_other_requests_than_the_edge(attack: Attack, name: str) -> None:
    key, failed = attack.key, []
    wanted: list[tuple[str, str, str]] = []
    for number, case in enumerate(corpus.requests()):
        path = f"/{name}/{number}"
        answered = attack.send(case.data(path, key), request(f"{path}/next", key), case.sent())
        if answered != (case.status, case.kept):
            failed.append(f"{case.name}: {answered}")
        wanted += expected(case, path, key)
    seen = attack.seen(name)
    assert not failed
    assert told(seen) == sorted(wanted)
    assert strange(attack, name, seen) == []


@pytest.mark.parametrize("name", witnesses.names())
def test_no_server_finds_its_way_to_what_is_guarded(attack: Attack, name: str) -> None:
    key, failed = attack.key, []
    statuses = {"refused": {400}, "ambiguous": {400}, "forbidden": {403}, "clear": {200}}
    wanted: list[tuple[str, str, str]] = []
    for kind, belows in corpus.paths().items():
        for below in belows:
            target = f"/{name}{below}"
            status, _ = attack.send(request(target, key, Connection="close"), b"", "GET")
            # A server may refuse by itself what it does not like: what matters is that it takes nothing for another thing.
            if status not in statuses[kind] | ({400} if kind == "clear" else set()):
                failed.append(f"{target}: {status}")
            wanted += [("GET", target, "")] if status == 200 else []
    seen = attack.seen(name)
    assert not failed
    assert len(wanted) > 20
    assert told(seen) == sorted(wanted)
    assert strange(attack, name, seen) == []


@pytest.mark.parametrize("name", witnesses.names())
def test_no_server_hears_of_who_asks_but_by_the_edge(attack: Attack, name: str) -> None:
    for forged in corpus.forged():
        for named in ("", f"Connection: {forged}\r\n"):
            data = request(f"/{name}/forged", attack.key)[:-2] + f"{named}{forged}: forged\r\n\r\n".encode()
            assert attack.send(data, request(f"/{name}/next", attack.key), "GET") == (200, True), forged
    seen = attack.seen(name)
    assert len(seen) == 4 * len(corpus.forged())
    heard = {(field, value) for each in seen for field, value in each["headers"]}
    # What a client calls its request is passed on, by another name.
    assert [field for field, value in heard if "forged" in value] in ([], ["x-correlation-id"])
    assert strange(attack, name, seen) == []


@pytest.mark.parametrize(
    ("name", "status", "body", "answer"), [pytest.param(*each, id=each[0]) for each in corpus.responses()]
)
@pytest.mark.parametrize("ends", [False, True])
def test_what_an_upstream_answers_is_read_in_one_way(
    attack: Attack, upstream: Upstream, name: str, status: int, body: str, answer: str, ends: bool
) -> None:
    path = f"/echo/answers/{name.replace(' ', '-')}"
    data = answer.encode("latin-1")
    upstream.behaviours[path] = then_close(data) if ends else plain(data)
    with attack.world.raw() as client:
        client.send(request(path, attack.key))
        response = client.response()
        assert (response.status, response.whole) == (status, True)
        assert response.body == body.encode() or status != 200
        assert attack.world.record(response.header("x-request-id")).status_code == status
        client.send(request("/echo/after", attack.key))
        assert client.response().json["target"] == "/echo/after"
