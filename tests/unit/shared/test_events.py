"""The published language holds still: schemas are committed, only grow, and every version ever written is read for ever."""

from __future__ import annotations

import copy
import itertools
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from shared.events import CloudEvent, EventData, requests
from shared.events.requests import Request, RequestEvent, RequestMetered, decode_request, encode_request
from shared.events.schemas import ALL, breaks, file_name, main, schema_of, text_of
from tests.unit.shared.samples import DATA, GOLDEN, LOG, MOMENT, cloud_event

SCHEMAS = Path(__file__).parents[3] / "schemas"
CLASSES = {event.TYPE: event for event in ALL}
FILES = sorted(GOLDEN.glob("*.json"))


def _named(event: type[EventData]) -> str:
    return event.TYPE


def _versions(event_type: str) -> list[dict[str, Any]]:
    paths = sorted(SCHEMAS.glob(f"{event_type}.v*.json"), key=lambda path: int(path.stem.rsplit(".v", 1)[1]))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("event", ALL, ids=_named)
def test_the_committed_schema_is_that_of_the_class(event: type[EventData]) -> None:
    assert (SCHEMAS / file_name(event)).read_text() == text_of(schema_of(event)), (
        "run `python -m shared.events.schemas`; another shape needs another SCHEMA_VERSION"
    )


def test_every_schema_file_belongs_to_an_event() -> None:
    assert {path.stem.rsplit(".v", 1)[0] for path in SCHEMAS.glob("*.v*.json")} == set(CLASSES)


def test_generators_of_code_find_an_id_and_an_identifier_in_every_schema() -> None:
    titles = set()
    for path in SCHEMAS.glob("*.v*.json"):
        schema = json.loads(path.read_text())
        kind, version = path.stem.rsplit(".v", 1)
        assert schema["$id"] == f"urn:keyledger:{kind}:v{version}"
        assert schema["title"].isidentifier() and schema["title"] not in titles | set(schema["$defs"])
        titles.add(schema["title"])


@pytest.mark.parametrize("event", ALL, ids=_named)
def test_every_version_only_adds_to_the_one_before(event: type[EventData]) -> None:
    versions = _versions(event.TYPE)
    assert len(versions) == event.SCHEMA_VERSION
    for old, new in itertools.pairwise(versions):
        assert breaks(old, new) == []


_OLD = schema_of(CLASSES["key.state"])


def _changed() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A copy to change: the whole schema, the part of the state, the part of its hashes."""
    new = copy.deepcopy(_OLD)
    return new, new["$defs"]["KeyState"], new["$defs"]["Hash"]


def test_the_same_schema_breaks_nothing() -> None:
    assert breaks(_OLD, _changed()[0]) == []


def test_a_removed_field_breaks() -> None:
    new, state, _ = _changed()
    del state["properties"]["addresses"]
    assert breaks(_OLD, new) == ["data.addresses is gone"]


def test_a_field_removed_from_a_list_s_items_breaks() -> None:
    new, _, hashes = _changed()
    del hashes["properties"]["valid_until"]
    assert breaks(_OLD, new) == ["data.hashes.[].valid_until is gone"]


def test_a_newly_required_field_breaks() -> None:
    new, state, _ = _changed()
    state["properties"]["extra"] = {"type": "integer"}
    state["required"].append("extra")
    assert breaks(_OLD, new) == ["data.extra is required now"]


def test_a_field_that_may_be_missing_now_breaks() -> None:
    new, state, _ = _changed()
    state["required"].remove("addresses")
    assert breaks(_OLD, new) == ["data.addresses may be missing now"]


def test_another_type_or_choice_breaks() -> None:
    new, state, _ = _changed()
    state["properties"]["id"] = {"type": "string"}
    state["properties"]["status"]["enum"].pop()
    assert len(breaks(_OLD, new)) == 2


def test_a_field_with_a_default_only_adds() -> None:
    new, state, hashes = _changed()
    for part in (state, hashes):
        part["properties"]["extra"] = {"type": "integer", "default": 0}
    assert breaks(_OLD, new) == []


def test_the_generator_leaves_a_file_of_another_shape_alone(tmp_path: Path) -> None:
    assert main(tmp_path) == []
    path = tmp_path / "key.updated.v1.json"
    published = path.read_text().replace('"name"', '"label"')
    path.write_text(published)
    (tmp_path / "key.deleted.v1.json").write_text(
        (tmp_path / "key.deleted.v1.json").read_text().replace("for ever", "")
    )
    assert main(tmp_path) == ["key.updated.v1.json"]
    assert path.read_text() == published
    assert "for ever" in (tmp_path / "key.deleted.v1.json").read_text()


def test_every_present_version_has_a_golden_file() -> None:
    assert {file_name(event) for event in ALL} <= {path.name for path in FILES}
    assert {type(data) for data in DATA} == set(ALL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_golden_file_is_read_for_ever(path: Path) -> None:
    written = json.loads(path.read_text())
    event_class = CLASSES[written["type"]]
    Draft202012Validator(json.loads((SCHEMAS / path.name).read_text())).validate(written)
    read: CloudEvent[EventData] = CloudEvent[event_class].model_validate_json(path.read_bytes())  # type: ignore[valid-type]
    again = json.loads(read.encode())
    assert {name: again[name] for name in written if name != "data"} == {
        k: v for k, v in written.items() if k != "data"
    }
    assert written["data"].items() <= again["data"].items()


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.TYPE)
def test_an_event_is_written_as_its_golden_file(data: EventData) -> None:
    golden = json.loads((GOLDEN / file_name(type(data))).read_text())
    assert json.loads(cloud_event(data).encode()) == golden


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.TYPE)
def test_fields_that_are_not_known_are_ignored(data: EventData) -> None:
    written = json.loads(cloud_event(data).encode())
    written["data"]["of_a_later_version"] = {"a": 1}
    written["laterattribute"] = "x"
    read = CloudEvent[type(data)].model_validate(written)  # type: ignore[misc]
    assert read.data == data


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_COUNT = st.integers(0, 2**63 - 1)

_requests = st.builds(
    Request,
    sequence=_COUNT,
    previous=st.integers(-1, 2**63 - 1),
    edge=_TEXT,
    key_id=_COUNT,
    key_version=_COUNT,
    owner_id=_COUNT,
    endpoint=_TEXT,
    route=_TEXT,
    method=_TEXT,
    status_code=st.integers(100, 599),
    response_time=st.floats(0, 1e6),
    decision=st.sampled_from(get_args(requests.Decision)),
    via=st.sampled_from(get_args(requests.Via)),
    request_id=_TEXT,
    correlation_id=st.none() | _TEXT,
    client_address=st.none() | _TEXT,
)
_moments = st.timedeltas(timedelta(-9000), timedelta(20000)).map(lambda since: MOMENT + since)
_METERED = Draft202012Validator(schema_of(RequestMetered))


@given(_requests, _moments, _COUNT)
def test_what_the_hot_path_writes_is_what_the_contract_says(request: Request, time: datetime, key: int) -> None:
    event = RequestEvent(
        id=f"{LOG}-{request.sequence}",
        source=LOG,
        type=RequestMetered.TYPE,
        time=time,
        subject=f"key-{key}",
        data=request,
    )
    encoded = encode_request(event)
    _METERED.validate(json.loads(encoded))
    contract = CloudEvent[RequestMetered].model_validate_json(encoded)
    assert contract.data.model_dump() == msgspec.structs.asdict(request)
    assert (contract.id, contract.source, contract.time, contract.subject) == (event.id, LOG, time, f"key-{key}")
    assert decode_request(encoded) == event


def test_the_hot_path_reads_what_the_contract_writes() -> None:
    metered = next(data for data in DATA if isinstance(data, RequestMetered))
    read = decode_request(cloud_event(metered).encode())
    assert msgspec.structs.asdict(read.data) == metered.model_dump()
    assert (read.type, read.time) == (RequestMetered.TYPE, MOMENT)


def test_the_hot_path_reads_the_end_of_a_log() -> None:
    read = decode_request((GOLDEN / "log.closed.v1.json").read_bytes())
    assert (read.type, read.data) == ("log.closed", Request(sequence=42, previous=41, edge="edge-1"))


def test_the_structs_have_the_fields_of_the_contract() -> None:
    assert set(Request.__struct_fields__) == set(RequestMetered.model_fields)
    assert set(RequestEvent.__struct_fields__) <= set(CloudEvent.model_fields)
