"""The committed description of the API: it is the code's, it is valid, and its examples are what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from deploy.contracts.__main__ import DIRECTORY, ROOT, main
from services.edge.routes import RESERVED, Table, platform

API: dict[str, Any] = json.loads((DIRECTORY / "openapi.json").read_text())


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in API["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def examples() -> Iterator[Any]:
    for name, schema in API["components"]["schemas"].items():
        for example in schema.get("examples", ()):
            yield pytest.param({"$ref": f"#/components/schemas/{name}"}, example, id=name)
    for name, response in API["components"]["responses"].items():
        [media] = response["content"].values()
        for code, example in media["examples"].items():
            yield pytest.param(media["schema"], example["value"], id=f"{name} {code}")
    for name, header in API["components"]["headers"].items():
        yield pytest.param(header["schema"], header.get("example"), id=name)


def test_the_committed_documents_are_the_codes() -> None:
    assert main(ROOT, check=True) == []


def test_a_document_that_differs_is_named_and_written_anew(tmp_path: Path) -> None:
    main(tmp_path, check=False)
    document = tmp_path / "schemas" / "openapi.json"
    text = document.read_text()
    document.write_text(text.replace("X-API-Key", "X-Key"))
    assert main(tmp_path, check=True) == ["schemas/openapi.json"]
    main(tmp_path, check=False)
    assert document.read_text() == text


def test_it_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(API).validate()


@pytest.mark.parametrize(("schema", "example"), list(examples()))
def test_an_example_is_what_its_schema_says(schema: dict[str, Any], example: Any) -> None:
    Draft202012Validator(schema | {"components": API["components"]}).validate(example)


def test_every_success_has_an_example_and_every_operation_a_description() -> None:
    for method, path, operation in operations():
        assert operation["description"] and operation["tags"], (method, path)
        [(_, response)] = [(s, r) for s, r in operation["responses"].items() if s < "400"]
        name = response["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        assert API["components"]["schemas"][name]["examples"], name
        if "requestBody" in operation:
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            assert API["components"]["schemas"][name]["examples"], name


def test_it_tells_of_public_paths_only_and_of_nothing_internal() -> None:
    table = Table(platform({"keys": "http://k", "tickets": "http://t", "stats": "http://s"}))
    for _, path, _operation in operations():
        assert table.match(path) is not None and path.startswith(RESERVED), path
    text = json.dumps(API).lower()
    assert "keyledger-identity" not in text and "httpvalidationerror" not in text


def test_operation_ids_stay_since_clients_are_generated_from_them() -> None:
    assert {operation["operationId"] for _, _, operation in operations()} >= {
        "create_key",
        "list_keys",
        "get_key",
        "update_key",
        "delete_key",
        "get_key_usage",
        "open_ticket",
        "list_tickets",
        "get_ticket",
        "update_ticket",
        "add_reply",
        "resolve_ticket",
        "reopen_ticket",
        "close_ticket",
        "get_dashboard_stats",
    }


def test_every_operation_names_the_refusals_of_the_edge() -> None:
    for method, path, operation in operations():
        named = set(operation["responses"])
        assert {"401", "403", "429", "500", "502", "503", "504"} <= named, (method, path)
        assert ("404" in named) >= ("{" in path)
        assert {"400", "413", "415", "422"} <= named or "requestBody" not in operation
    codes = {
        code
        for response in API["components"]["responses"].values()
        for media in response["content"].values()
        for code in media["examples"]
    }
    assert {
        "key_invalid",
        "key_inactive",
        "permission_missing",
        "rate_limited",
        "not_ready",
        "repair_needed",
        "conflict",
    } <= codes
