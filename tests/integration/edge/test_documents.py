"""What anybody may read at the edge without a key, and at what cost."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from deploy.contracts.__main__ import DIRECTORY
from tests.integration.edge.world import World, request

JWKS = "/.well-known/keyledger/jwks.json"
PATHS = ("/openapi.json", "/docs", "/docs/", JWKS)


@pytest.mark.parametrize("path", PATHS)
def test_a_document_needs_no_key_and_is_not_metered(world: World, path: str) -> None:
    answer = world.get(path, "kl_live_nonsense")
    assert answer.status == 200
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("cache-control") == "max-age=300"
    assert answer.header("x-ratelimit-limit") is None
    assert world.settled(path) == []


@pytest.mark.parametrize("path", PATHS)
def test_who_has_it_is_told_so_in_a_few_bytes(world: World, path: str) -> None:
    with world.raw() as client:
        client.send(request(path))
        whole = client.response()
        etag = whole.header("etag") or "none"
        for held in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            client.send(request(path, If_None_Match=held))
            answer = client.response()
            assert (answer.status, answer.body, answer.header("etag")) == (304, b"", etag)
        for other in ('"x"', "", "etag"):
            client.send(request(path, If_None_Match=other))
            assert client.response().body == whole.body
        client.send(request(path, method="HEAD"))
        head = client.response("HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.header("content-length") == str(len(whole.body))


def test_nothing_can_be_sent_to_a_document(world: World) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = world.get("/docs", method=method)
        assert (answer.status, answer.header("allow")) == (405, "GET, HEAD")


def test_the_description_is_the_committed_one(world: World) -> None:
    answer = world.get("/openapi.json?x=1")
    assert answer.header("content-type") == "application/json"
    assert answer.json == json.loads((DIRECTORY / "openapi.json").read_text())
    assert len(answer.body) < 60_000, "what a client without a key can ask for must stay small"


def test_the_page_runs_its_own_script_and_no_other(world: World) -> None:
    answer = world.get("/docs")
    policy = dict(part.split(" ", 1) for part in (answer.header("content-security-policy") or "").split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind in ("script", "style"):
        [inline] = re.findall(rb"<%b>(.*?)</%b>" % (kind.encode(), kind.encode()), answer.body, re.DOTALL)
        assert policy[f"{kind}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(inline).digest()).decode()}'"
    assert b"http://" not in answer.body and b"https://" not in answer.body, "it needs nothing from elsewhere"
    assert b" style=" not in answer.body and b" onclick=" not in answer.body, "the policy would refuse it"


def test_the_rest_of_their_paths_is_nobodys(world: World, key: str) -> None:
    for path in ("/docs/x", "/openapi.json/x", "/.well-known/keyledger/x"):
        assert world.get(path).status == 401
        assert world.get(path, key).status == 404
    assert json.loads(world.get(JWKS).body)["keys"]
