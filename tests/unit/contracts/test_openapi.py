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


def parts(of: Any) -> Iterator[dict[str, Any]]:
    """Every object in the document but for examples."""
    if isinstance(of, dict):
        yield of
        of = [each for name, each in of.items() if name not in ("example", "examples")]
    if isinstance(of, list):
        for each in of:
            yield from parts(each)


def test_no_two_components_have_one_name() -> None:
    """Where each becomes a type (Go), the document would be refused."""
    names = [name.lower() for kind in ("schemas", "securitySchemes") for name in API["components"][kind]]
    assert len(names) == len(set(names))
    assert all(set(requirement) <= set(API["components"]["securitySchemes"]) for requirement in API["security"])


def test_every_number_says_how_many_bits_it_has() -> None:
    found = [(part["type"], part.get("format")) for part in parts(API) if part.get("type") in ("integer", "number")]
    assert set(found) == {("integer", "int64"), ("number", "double")}


def test_every_number_that_a_client_sends_has_bounds() -> None:
    sent = [parameter["schema"] for _, _, operation in operations() for parameter in operation.get("parameters", ())]
    bodies = [API["components"]["schemas"][name] for name in ("CreateApiKey", "WantedLimits", "UpdateApiKey")]
    for part in (part for each in (*sent, *bodies) for part in parts(each) if part.get("type") == "integer"):
        assert part["minimum"] >= 1 and part["maximum"] < 2**63, part


def test_a_status_is_one_of_those_that_there_are() -> None:
    schemas = API["components"]["schemas"]
    for name in ("TicketSummary", "TicketDetails", "RecentTicket"):
        assert schemas[name]["properties"]["status"]["enum"] == ["open", "resolved", "closed"]


def test_it_says_whom_to_ask_and_what_is_not_there_yet() -> None:
    assert API["info"]["contact"]["name"]
    assert "`Idempotency-Key`" in API["info"]["description"] and "`If-Match`" in API["info"]["description"]


def test_every_operation_names_the_refusals_of_the_edge() -> None:
    for method, path, operation in operations():
        named = set(operation["responses"])
        assert {"400", "401", "403", "429", "500", "502", "503", "504"} <= named, (method, path)
        assert ("404" in named) >= ("{" in path)
        of_bodies = {"408", "413", "415"}
        assert named & of_bodies == (of_bodies if "requestBody" in operation else set()), (method, path)
        assert "422" in named or "requestBody" not in operation
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
