"""Identity tokens as the edge makes them, signed with a key that lives as long as a test run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.identity import AUDIENCE, ISSUER


class Signer:
    """An edge's signing key."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def public_keys(self, path: Path) -> Path:
        """Writes the file that services are given."""
        path.write_bytes(self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return path

    def token(self, owner_id: int, key_id: int, /, *permissions: str, **claims: Any) -> str:
        """A good token; `claims` take the place of its own."""
        now = int(time.time())
        content: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": f"key-{key_id}",
            "iat": now,
            "exp": now + 600,
            "owner_id": owner_id,
            "key_id": key_id,
            "permissions": list(permissions),
        }
        return jwt.encode(content | claims, self._key, algorithm="EdDSA")
