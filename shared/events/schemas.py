"""JSON Schemas of all events, one file for each type and schema version: `python -m shared.events.schemas DIRECTORY`.

A file that is there is only written again when nothing but words changed in it: another shape is another schema version.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from shared.events import SPECVERSION, CloudEvent, EventData, keys, requests, tickets

ALL: tuple[type[EventData], ...] = (*keys.EVENTS, *keys.STATES, *tickets.EVENTS, *requests.EVENTS)
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ALWAYS = ["specversion", "id", "source", "type", "time", "datacontenttype", "schemaversion", "data"]
_WORDS = ("title", "description")


def schema_of(event: type[EventData]) -> dict[str, Any]:
    """The schema of the whole CloudEvent, as its JSON text is written to the topic."""
    found = CloudEvent[event].model_json_schema(mode="serialization")  # type: ignore[valid-type]
    found["properties"] |= {"type": {"const": event.TYPE}, "specversion": {"const": SPECVERSION}}
    version = event.SCHEMA_VERSION
    named = {
        "$schema": _DIALECT,
        "$id": f"urn:keyledger:{event.TYPE}:v{version}",
        # Generators of code name a class by it, beside that of the data.
        "title": f"{event.__name__}EventV{version}",
        "description": found["$defs"][event.__name__].pop("description"),
    }
    return named | _without_titles(found) | {"required": _ALWAYS}


def file_name(event: type[EventData]) -> str:
    """Where the schema of the event's present version lies: `<type>.v<version>.json`."""
    return f"{event.TYPE}.v{event.SCHEMA_VERSION}.json"


def text_of(schema: dict[str, Any]) -> str:
    """The schema as its file has it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a reader of `old`, or an event of `old` read by `new`, would stumble over: empty when `new` only adds."""
    return _breaks("", _inlined(old, old), _inlined(new, new))


def same_shape(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the two differ in words only."""
    return _inlined(old, old) == _inlined(new, new)


def main(directory: Path) -> list[str]:
    """Writes the files that are missing or differ in words; returns the names of those that differ in shape."""
    directory.mkdir(parents=True, exist_ok=True)
    refused = []
    for event in ALL:
        path, schema = directory / file_name(event), schema_of(event)
        if path.exists() and not same_shape(json.loads(path.read_text()), schema):
            refused.append(path.name)
        else:
            path.write_text(text_of(schema))
    return refused


def _without_titles(schema: Any) -> Any:
    match schema:
        case dict():
            return {
                name: {field: _without_titles(each) for field, each in part.items()}
                if name in ("properties", "$defs")
                else _without_titles(part)
                for name, part in schema.items()
                if name != "title"
            }
        case list():
            return [_without_titles(each) for each in schema]
    return schema


def _inlined(part: Any, root: dict[str, Any]) -> Any:
    """Without references and words: what is left is the shape."""
    match part:
        case {"$ref": str(path)}:
            return _inlined(root["$defs"][path.rsplit("/", 1)[1]], root)
        case {"properties": dict(fields)}:
            rest = {name: each for name, each in part.items() if name != "properties"}
            return _inlined(rest, root) | {"properties": {name: _inlined(each, root) for name, each in fields.items()}}
        case dict():
            skipped = (*_WORDS, "$defs", "$schema", "$id")
            return {name: _inlined(each, root) for name, each in part.items() if name not in skipped}
        case list():
            return [_inlined(each, root) for each in part]
    return part


def _breaks(where: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    had, has = old.get("properties", {}), new.get("properties", {})
    found = [f"{where}{name} is gone" for name in had if name not in has]
    found += [f"{where}{name} is required now" for name in _required(new) - _required(old)]
    found += [f"{where}{name} may be missing now" for name in _required(old) & set(has) - _required(new)]
    found += [each for name in had if name in has for each in _breaks(f"{where}{name}.", had[name], has[name])]
    if "items" in old and "items" in new:
        found += _breaks(f"{where}[].", old["items"], new["items"])
    apart = ("properties", "required", "items")
    rest = [{name: each for name, each in part.items() if name not in apart} for part in (old, new)]
    return found if rest[0] == rest[1] else [*found, f"{where or 'the event'} is of another kind: {rest[0]}, {rest[1]}"]


def _required(schema: dict[str, Any]) -> set[str]:
    return set(schema.get("required", ()))


if __name__ == "__main__":
    if another := main(Path(sys.argv[1] if len(sys.argv) > 1 else "schemas")):
        sys.exit(f"another shape needs another SCHEMA_VERSION: {', '.join(another)}")
