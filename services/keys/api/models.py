"""What key management takes and shows (API documentation, API Key Management)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, model_validator

from shared.api import MAY_BE_ABSENT, ONE_LINE, Body, Moment, Text, Timestamp, example
from shared.events.keys import Permission
from shared.metered import CALL, ApiCall

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), ONE_LINE]
Description = Annotated[Text, StringConstraints(max_length=500)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


# The examples of the API documentation.
_TEXTS = {"name": "My API Key", "description": "API key for my application"}
_NEW = {"is_active": True, "created_at": "2024-03-20T12:00:00Z", "last_used": None, "usage_count": 0}
_SHOWN = {"id": 1, **_TEXTS, **_NEW, "last_used": "2024-03-21T15:30:00Z", "usage_count": 42}
_CHANGE = {"name": "Updated API Key", "description": "Updated description", "is_active": True}


class WantedLimits(Body):
    """Requests per sliding window; null is without limit. What is absent is 100, 1000 and 10000, or the creating key's
    where that is less.
    """

    minute: Count | None = None
    hour: Count | None = None
    day: Count | None = None


class CreateApiKey(Body):
    """A new key. Only `name` is required; what else is absent is as the creating key's."""

    model_config = example(_TEXTS)

    name: Name
    description: Description | None = None
    permissions: Annotated[list[Permission], Field(max_length=100)] | None = None
    limits: WantedLimits | None = None
    expires_at: Moment | None = None


class UpdateApiKey(Body):
    """What is to change; what is absent stays."""

    model_config = example(_CHANGE)

    name: Annotated[Name | None, MAY_BE_ABSENT] = None
    description: Description | None = None
    is_active: Annotated[bool | None, Field(strict=True), MAY_BE_ABSENT] = None

    @model_validator(mode="after")
    def _not_null(self) -> UpdateApiKey:
        for field in ("name", "is_active"):
            if field in self.model_fields_set and getattr(self, field) is None:
                raise ValueError(f"{field} must not be null")
        return self


class ApiKey(BaseModel):
    """A key as lists and updates show it."""

    model_config = example(_SHOWN)

    id: int
    name: str
    description: str | None
    is_active: bool
    created_at: Timestamp
    last_used: Timestamp | None
    usage_count: int


class CreatedApiKey(BaseModel):
    """A key as its creation shows it: the only time that `key`, the secret, is told."""

    model_config = example({"id": 1, **_TEXTS, "key": "generated_api_key", **_NEW})

    id: int
    name: str
    description: str | None
    key: str
    is_active: bool
    created_at: Timestamp
    last_used: Timestamp | None
    usage_count: int


class ApiKeyDetails(ApiKey):
    """A key with its last hundred calls, newest first."""

    model_config = example({**_SHOWN, "usage": [CALL]})

    usage: list[ApiCall]


class ApiKeyList(BaseModel):
    """A page of keys."""

    model_config = example({"api_keys": [_SHOWN], "total": 1, "page": 1, "size": 10})

    api_keys: list[ApiKey]
    total: int
    page: int
    size: int


class Message(BaseModel):
    """What was done."""

    model_config = example({"message": "API key deleted successfully"})

    message: str
