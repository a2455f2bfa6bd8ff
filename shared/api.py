"""What the `api.py` of every service is made of: the caller, its context, ids, pages, texts and times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from shared.errors import NotFound
from shared.identity import Identity, verify

BIGINT = 2**63 - 1
_PAGES = 1_000_000_000
_CENTURY = timedelta(days=36_525)
_INTERNET_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


async def context(request: Request) -> Any:
    """What the composition root gave to `shared.http.serve`: for a service's `Ctx`."""
    return request.app.state.context


async def _identity(
    request: Request, keyledger_identity: Annotated[str, Header(include_in_schema=False)] = ""
) -> Identity:
    return verify(keyledger_identity, request.app.state.identity_keys)


Caller = Annotated[Identity, Depends(_identity)]


class _MayBeAbsent:
    """Told of a field or parameter that may be absent, which the code holds as None, but can't be null."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        [other] = [each for each in found.pop("anyOf") if each != {"type": "null"}]
        return found | other


MAY_BE_ABSENT = _MayBeAbsent()

OwnerParam = Annotated[
    int | None, Query(ge=1, le=BIGINT, description="Another owner than one's own: for `admin` only."), MAY_BE_ABSENT
]
"""The owner to act for: others than one's own only for `admin`."""


@dataclass(frozen=True)
class Page:
    """A page of a list: `page` from 1, `size` rows."""

    page: int
    size: int

    @property
    def offset(self) -> int:
        """Rows before this page."""
        return (self.page - 1) * self.size


async def _page(
    page: Annotated[int, Query(ge=1, le=_PAGES)] = 1, size: Annotated[int, Query(ge=1, le=100)] = 10
) -> Page:
    return Page(page, size)


Paged = Annotated[Page, Depends(_page)]


class Body(BaseModel):
    """Base of request bodies: a field that nobody knows is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None
    return value


def _on_one_line(value: str) -> str:
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        raise ValueError("must not contain control characters")
    return _storable(value)


@dataclass(frozen=True)
class _Told(AfterValidator):
    """A rule of ours that the API description tells by a pattern."""

    pattern: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": self.pattern}


Text = Annotated[str, _Told(_storable, r"^[^\u0000]*$")]
# Stands after the constraints of a field: pydantic trims first only where nothing comes before.
ONE_LINE = _Told(
    _on_one_line, r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$"
)


def _internet_time(value: Any) -> Any:
    if not isinstance(value, str) or _INTERNET_TIME.fullmatch(value) is None:
        raise ValueError("must be a date and time with a distance from UTC (RFC 3339)")
    return value


def _bounded(value: datetime) -> datetime:
    # Near the calendar's ends there may be no such moment in UTC, which is what everybody behind us works with.
    try:
        moment = value.astimezone(UTC)
    except OverflowError:
        moment = datetime.min.replace(tzinfo=UTC)
    if abs(moment - datetime.now(UTC)) > _CENTURY:
        raise ValueError("must be within 100 years of now")
    return moment


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_internet_time),
    AfterValidator(_bounded),
    WithJsonSchema(
        {"type": "string", "format": "date-time", "description": "RFC 3339; within 100 years of now. Held in UTC."}
    ),
]
"""A time that a caller gives; in UTC."""


# What the API description says of values that the code holds as text.
Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
LOCATION: dict[str, Any] = {
    "Location": {"description": "Where what was made is.", "schema": {"type": "string", "format": "uri-reference"}}
}


def example(value: dict[str, Any]) -> ConfigDict:
    """A model's configuration with an example of it for the API description."""
    return ConfigDict(json_schema_extra={"examples": [value]})


def timestamp(moment: datetime) -> str:
    """The moment as the API shows it: RFC 3339, UTC, whole seconds, `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def path_id(name: str, missing: str) -> Any:
    """Marks a parameter as the id in the path's `{name}`: a positive integer in canonical form. `NotFound`, in the words of
    `missing`, when it is none.
    """

    told = {"type": "integer", "minimum": 1, "maximum": BIGINT}

    # A postponed annotation could not see the name.
    async def found(text: str = Path(alias=name, json_schema_extra=told)) -> int:
        if text.isascii() and text.isdigit() and text[0] != "0" and len(text) < 20 and int(text) <= BIGINT:
            return int(text)
        raise NotFound(missing)

    return Depends(found)
