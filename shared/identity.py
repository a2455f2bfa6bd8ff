"""Who calls, as the edge has found it: a signed token (JWT) that only the edge can make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from shared.errors import PermissionMissing, Unauthenticated

AUDIENCE = "keyledger"
ISSUER = "keyledger"
_LEEWAY = 30


@dataclass(frozen=True)
class Identity:
    """Who calls, as the edge found it: verified from the identity token, never from any other header."""

    owner_id: int
    key_id: int
    permissions: frozenset[str]
    token: str

    @property
    def admin(self) -> bool:
        """Whether the caller may act for every owner."""
        return "admin" in self.permissions

    @property
    def actor(self) -> str:
        """Who is written into events as their cause."""
        return f"key-{self.key_id}"

    def owner(self, wanted: int | None) -> int:
        """The owner to act for: one's own, or for `admin` the one that is wanted."""
        if wanted is None or wanted == self.owner_id:
            return self.owner_id
        if not self.admin:
            raise PermissionMissing("Only a key with the permission admin may name another owner.")
        return wanted


def load_public_keys(path: Path) -> list[Ed25519PublicKey]:
    """The Ed25519 public keys of a PEM file. `ValueError` when there is none or one of another kind."""
    end = b"-----END PUBLIC KEY-----"
    blocks = [block + end for block in path.read_bytes().split(end)[:-1]]
    keys = [load_pem_public_key(block.strip()) for block in blocks]
    if not keys or not all(isinstance(key, Ed25519PublicKey) for key in keys):
        raise ValueError(f"{path} must hold Ed25519 public keys")
    return [key for key in keys if isinstance(key, Ed25519PublicKey)]


def verify(token: str, keys: list[Ed25519PublicKey]) -> Identity:
    """The identity in a token that one of `keys` signed for these services (RFC 7519, RFC 8037); else `Unauthenticated`."""
    for key in keys:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=_LEEWAY,
                options={"require": ["exp", "iat", "sub", "aud"]},
            )
            return Identity(int(claims["owner_id"]), int(claims["key_id"]), frozenset(claims["permissions"]), token)
        except jwt.InvalidSignatureError:
            continue
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError) as error:
            raise Unauthenticated("The identity token is not valid.") from error
    raise Unauthenticated("The identity token is not valid.")
