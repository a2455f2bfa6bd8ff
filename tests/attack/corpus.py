"""The corpus: cases as data. Text stands for bytes (Latin-1); `{path}`, `{key}` and `{length}` (of the body) are filled in."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A request and what it must come to.

    `status` is of its answer. At 200 the upstream sees it, as a request for `target` with `body_is`; unless it is
    `answered_here`, by the edge. Then the connection goes on, unless the case `ends` it; after another status it ends,
    unless it `goes_on`.
    """

    name: str
    status: int
    raw: str = ""
    method: str = "GET"
    version: str = "HTTP/1.1"
    fields: tuple[str, ...] = ()
    body: str = ""
    body_is: str = ""
    target: str = "{path}"
    ends: bool = False
    goes_on: bool = False
    answered_here: bool = False

    @property
    def kept(self) -> bool:
        """Whether another request may follow."""
        return self.goes_on or (self.status == 200 and not self.ends)

    def data(self, path: str, key: str) -> bytes:
        """The request."""
        fields = ("Host: h", "X-API-Key: {key}", *self.fields)
        lines = "\r\n".join((f"{self.method} {{path}} {self.version}", *fields, "", ""))
        return filled(self.raw or lines + self.body, path, key, len(filled(self.body, path, key)))

    def sent(self) -> str:
        """Its method, as far as it has a good one."""
        return (self.raw or self.method).strip().split(" ")[0]


def filled(text: str, path: str, key: str, length: int = 0) -> bytes:
    """The bytes that `text` stands for."""
    return text.replace("{path}", path).replace("{key}", key).replace("{length}", str(length)).encode("latin-1")


def requests() -> list[Case]:
    """All of `framing`, `chunks`, `heads` and `targets`."""
    found = [
        _case(f"{name}: {case['name']}", case) for name in ("framing", "heads", "targets") for case in _cases(name)
    ]
    return [*found, *_chunks()]


def paths() -> dict[str, list[str]]:
    """Paths below a route's prefix, by what becomes of them: `refused`, `forbidden`, `ambiguous`, `clear`."""
    return _read("paths")


def forged() -> list[str]:
    """Names of fields that only the edge writes."""
    return _read("names")["forged"]


def responses() -> Iterator[tuple[str, int, str, str]]:
    """Name, the status that the client gets, the body that it gets, and the answer of the upstream."""
    for group in _read("responses")["groups"]:
        for name, answer in group["answers"]:
            yield name, group["status"], group.get("body_is", ""), answer


def _chunks() -> Iterator[Case]:
    document = _read("chunks")
    for group in document["groups"]:
        for name, body in group["bodies"]:
            told = {"status": group["status"], "body_is": group.get("body_is", "")}
            yield _case(f"chunks: {name}", {**document["defaults"], **told, "body": body})


def _case(name: str, values: dict[str, Any]) -> Case:
    told: dict[str, Any] = {**values, "name": name, "fields": tuple(values.get("fields", ()))}
    return Case(**told)


def _cases(name: str) -> list[dict[str, Any]]:
    return _read(name)["cases"]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_HERE / f"{name}.toml").read_text())
