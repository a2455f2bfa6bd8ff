"""The description of the API against the running stack: every example in it is sent, and every answer is as described."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deploy.contracts.__main__ import DIRECTORY
from tests.e2e.client import Client, assert_problem

PATH = DIRECTORY / "openapi.json"
API: dict[str, Any] = json.loads(PATH.read_text())
OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in API["paths"].items()
    for method, operation in methods.items()
}
ONLY_WHEN_IT_FAILS = {"Keyledger-Missing"}


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        found: dict[str, Any] = API
        for name in part["$ref"].split("/")[1:]:
            found = found[name]
        part = found
    return part


def strict(part: Any) -> Any:
    """A schema that allows no field that it does not name."""
    if isinstance(part, list):
        return [strict(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {"additionalProperties": False} if isinstance(part.get("properties"), dict) and "type" in part else {}
    return {name: strict(each) for name, each in part.items()} | closed


STRICT = strict(API["components"])


def assert_described(answer: httpx2.Response, operation: dict[str, Any]) -> None:
    """That the operation names the answer's status, and that its headers and body are as it says there."""
    described = resolved(operation["responses"][str(answer.status_code)])
    [(media_type, media)] = described["content"].items()
    assert answer.headers["content-type"].partition(";")[0] == media_type
    Draft202012Validator(media["schema"] | {"components": STRICT}).validate(answer.json())
    named = {name.lower() for name in described["headers"]}
    assert {name for name in answer.headers if name.startswith(("keyledger-", "x-rate", "ratelimit", "retry"))} <= named
    for name, header in described["headers"].items():
        if name not in ONLY_WHEN_IT_FAILS:
            schema, text = resolved(header)["schema"], answer.headers[name]
            Draft202012Validator(schema).validate(int(text) if schema["type"] == "integer" else text)
    if media_type == "application/problem+json":
        assert answer.json()["code"] in media["examples"]


def send(client: Client, name: str, ids: dict[str, int], **options: Any) -> httpx2.Response:
    """Sends an operation with the example of its body, or with `options` in its place, and checks the answer."""
    method, path, operation = OPERATIONS[name]
    if "requestBody" in operation and not options:
        [media] = operation["requestBody"]["content"].values()
        options = {"json": resolved(media["schema"])["examples"][0]}
    answer = client.send(method, path.format(**ids), **options)
    assert_described(answer, operation)
    return answer


def test_every_example_is_answered_as_described(owner: Client) -> None:
    with owner.with_key(owner.create_key("limited", limits={"minute": 100})["key"]) as client:
        ids = {
            "api_key_id": send(client, "create_key", {}).json()["id"],
            "ticket_id": send(client, "open_ticket", {}).json()["id"],
        }
        rest = [name for name in OPERATIONS if name not in ("create_key", "open_ticket", "delete_key")]
        for name in [*rest, "delete_key"]:
            assert send(client, name, ids).status_code < 300, name


def test_every_refusal_is_as_described(owner: Client) -> None:
    with owner.with_key(owner.create_key("limited", limits={"minute": 100})["key"]) as client:
        ticket = {"ticket_id": send(client, "open_ticket", {}).json()["id"]}
        send(client, "close_ticket", ticket)
        assert_problem(send(client, "resolve_ticket", ticket), 409, "conflict")
        assert_problem(send(client, "get_key", {"api_key_id": 2**62}), 404, "not_found")
        assert_problem(send(client, "create_key", {}, json={"name": " "}), 422, "invalid")
        assert_problem(send(client, "list_keys", {}, params={"size": 101}), 422, "invalid")
        assert_problem(
            send(client, "create_key", {}, content=b"{", headers={"Content-Type": "application/json"}),
            400,
            "bad_request",
        )
        assert_problem(send(client, "create_key", {}, content=b"name=a"), 415, "unsupported_media_type")
        assert_problem(send(client, "create_key", {}, json={"name": "x" * 1_100_000}), 413, "too_large")
        assert_problem(send(client, "list_keys", {}, params={"owner": 2**62}), 403, "permission_missing")
    with owner.with_key(None) as nobody:
        assert_problem(send(nobody, "list_keys", {}), 401, "key_invalid")
    with owner.with_key(owner.create_key("one a minute", limits={"minute": 1})["key"]) as client:
        send(client, "get_dashboard_stats", {})
        assert_problem(send(client, "get_dashboard_stats", {}), 429, "rate_limited")


schema = schemathesis.openapi.from_path(PATH)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    positive_data_acceptance,
]


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_nobody_thought_of_is_answered_as_described(name: str, owner: Client) -> None:
    method, path, _ = OPERATIONS[name]

    @given(case=schema[path][method].as_strategy())
    @settings(max_examples=6, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def answered(case: schemathesis.Case[Any]) -> None:
        # What no schema can say: that a time has to lie in the future, and how far pages of what size go.
        if isinstance(case.body, dict):
            case.body.pop("expires_at", None)
        if name == "get_key_usage":
            case.query.pop("page", None)
        case.call_and_validate(base_url=owner.url, headers={"X-API-Key": owner.secret}, checks=CHECKS)

    answered()
