"""Identity tokens: a short-lived JWT (RFC 7519) tells an upstream which key and owner it serves, signed with Ed25519
(RFC 8037), so that services believe nobody but the edge.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from services.edge.clock import SECOND
from services.edge.domain import KeyState
from services.edge.memo import Memo

ISSUER = "keyledger"
LIFE_SECONDS = 60
# Of tokens, in bytes: those of some ten thousand keys.
_MEMO = 16 * 1024 * 1024
_ENTRY = 300


class IdentityKeyError(Exception):
    """The signing key can't be read or is not an Ed25519 private key."""


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key of a PEM file; raises IdentityKeyError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityKeyError(f"{path}: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityKeyError(f"{path}: not an Ed25519 private key")
    return key


# Key id, epoch, version; audience.
_Name = tuple[int, int, int, str]


def _size(_name: _Name, held: tuple[int, bytes]) -> int:
    return _ENTRY + len(held[1])


class Identities:
    """Makes identity tokens and keeps each for half its life."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._jwk = _jwk(key)
        self._headers = {"kid": self._jwk["kid"]}
        self._held: Memo[_Name, tuple[int, bytes]] = Memo(_MEMO, _size)

    def token(self, key: KeyState, audience: str, wall_ns: int) -> bytes:
        """The token of `key` for `audience`, issued at most half its life before `wall_ns`."""
        name = (key.id, key.epoch, key.version, audience)
        now = wall_ns // SECOND
        held = self._held.get(name) or self._held.revive(name)
        if held is not None and 0 <= now - held[0] < LIFE_SECONDS // 2:
            return held[1]
        token = self._sign(key, audience, now)
        self._held.keep(name, (now, token))
        return token

    def jwks(self) -> bytes:
        """The public half as a JWK set (RFC 7517)."""
        return json.dumps({"keys": [self._jwk]}).encode()

    def _sign(self, key: KeyState, audience: str, now: int) -> bytes:
        claims = {
            "iss": ISSUER,
            "sub": f"owner-{key.owner_id}",
            "aud": audience,
            "iat": now,
            "exp": now + LIFE_SECONDS,
            "key_id": key.id,
            "owner_id": key.owner_id,
            "permissions": sorted(key.permissions),
        }
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers=self._headers).encode()


def _jwk(key: Ed25519PrivateKey) -> dict[str, Any]:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    required = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}
    # RFC 7638: the thumbprint of the required members, sorted, without spaces.
    thumbprint = hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return required | {"alg": "EdDSA", "use": "sig", "kid": _base64url(thumbprint)}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
