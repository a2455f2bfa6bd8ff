"""Callers as the edge names them: identity tokens, and a client of an application that accepts them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import APIRouter

from shared.http import create_app
from shared.identity import AUDIENCE, ISSUER


@dataclass
class Callers:
    """One edge's signing key."""

    directory: Path

    def __post_init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.directory / "identity.pem").write_bytes(pem)

    def headers(self, owner_id: int, *permissions: str) -> dict[str, str]:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 60,
            "sub": f"owner-{owner_id}",
            "owner_id": owner_id,
            "key_id": 1,
            "permissions": permissions,
        }
        return {"Keyledger-Identity": jwt.encode(claims, self._key, algorithm="EdDSA")}

    def client(self, name: str, router: APIRouter, context: Any) -> httpx2.AsyncClient:
        """A client of a service's application."""
        app = create_app(name, self.directory / "identity.pem")
        app.include_router(router)
        app.state.context = context
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service")
