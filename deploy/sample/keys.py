"""The keys of the sample's clients: made once through the API, their secrets kept in a file (mode 0600) for the next run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2

from deploy.local.directory import write_durably
from deploy.local.errors import StackError
from deploy.sample.scene import Client

API = "/api/v1/api-keys"


@dataclass
class SampleKey:
    """A key of ours. `made_at` is the wall clock's; `ended` whether it was deactivated, so that who reactivates it by hand
    is not overruled."""

    id: int
    secret: str
    made_at: float
    ended: bool = False


class Keys:
    """Makes what is missing. `http` speaks with a key that may make others."""

    def __init__(self, path: Path, http: httpx2.AsyncClient) -> None:
        self._path = path
        self._http = http
        held = json.loads(path.read_text()) if path.exists() else {}
        self._held = {name: SampleKey(**key) for name, key in held.items()}

    async def of(self, client: Client) -> SampleKey:
        """The client's key, made now if there is none. Raises StackError when it can't be."""
        if client.name not in self._held:
            self._held[client.name] = await self._make(client)
            self._save()
        return self._held[client.name]

    async def deactivate(self, key: SampleKey) -> None:
        """Deactivate the key, once in its life. Raises httpx2.HTTPError when it can't be now."""
        answer = await self._http.put(f"{API}/{key.id}", json={"is_active": False})
        answer.raise_for_status()
        key.ended = True
        self._save()

    async def _make(self, client: Client) -> SampleKey:
        wanted: dict[str, Any] = {
            "name": client.name,
            "description": client.description,
            "permissions": [],
            "limits": asdict(client.limits),
        }
        if client.expires_after is not None:
            wanted["expires_at"] = (datetime.now(UTC) + timedelta(seconds=client.expires_after)).isoformat()
        answer = await self._http.post(API, json=wanted)
        if answer.status_code != 201:
            raise StackError(
                f"The sample's key {client.name!r} can't be made with the key in the stack's env: "
                f"{answer.status_code} {answer.text}"
            )
        made = answer.json()
        return SampleKey(made["id"], made["key"], time.time())

    def _save(self) -> None:
        write_durably(self._path, json.dumps({name: asdict(key) for name, key in self._held.items()}, indent=2) + "\n")
