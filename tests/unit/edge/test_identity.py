"""Identity tokens say who asks, to one audience, for a minute."""

from __future__ import annotations

import json
from pathlib import Path

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.edge.clock import SECOND
from services.edge.domain import KeyState
from services.edge.identity import Identities, IdentityKeyError, load_key

KEY = KeyState(7, 3, epoch=1, version=2, status="active", permissions=frozenset({"write", "admin", "read"}))
NOW = 1_800_000_000 * SECOND


@pytest.fixture
def identities() -> Identities:
    return Identities(Ed25519PrivateKey.generate())


def claims(identities: Identities, token: bytes, audience: str = "keyledger") -> dict[str, object]:
    (jwk,) = json.loads(identities.jwks())["keys"]
    assert jwt.get_unverified_header(token)["kid"] == jwk["kid"]
    key = jwt.PyJWK(jwk).key
    return jwt.decode(
        token, key, algorithms=["EdDSA"], audience=audience, options={"verify_exp": False, "verify_iat": False}
    )


def test_a_token_tells_who_asks(identities: Identities) -> None:
    assert claims(identities, identities.token(KEY, "keyledger", NOW)) == {
        "iss": "keyledger",
        "sub": "owner-3",
        "aud": "keyledger",
        "iat": 1_800_000_000,
        "exp": 1_800_000_060,
        "key_id": 7,
        "owner_id": 3,
        "permissions": ["admin", "read", "write"],
    }


def test_a_token_is_for_one_audience(identities: Identities) -> None:
    token = identities.token(KEY, "route:reports", NOW)
    assert claims(identities, token, "route:reports")["aud"] == "route:reports"
    with pytest.raises(jwt.InvalidAudienceError):
        claims(identities, token)


@pytest.mark.parametrize(("later", "same"), [(0, True), (29, True), (30, False), (60, False), (-1, False)])
def test_a_token_is_kept_for_half_its_life(identities: Identities, later: int, same: bool) -> None:
    first = identities.token(KEY, "keyledger", NOW)
    assert (identities.token(KEY, "keyledger", NOW + later * SECOND) == first) is same


def test_a_changed_key_gets_a_new_token(identities: Identities) -> None:
    first = identities.token(KEY, "keyledger", NOW)
    changed = msgspec.structs.replace(KEY, version=3, permissions=frozenset())
    assert claims(identities, identities.token(changed, "keyledger", NOW))["permissions"] == []
    newer_epoch = msgspec.structs.replace(KEY, epoch=2, permissions=frozenset({"read"}))
    assert claims(identities, identities.token(newer_epoch, "keyledger", NOW))["permissions"] == ["read"]
    assert identities.token(KEY, "keyledger", NOW) == first


def test_only_an_ed25519_key_signs(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(IdentityKeyError, match="No such file"):
        load_key(path)
    path.write_text("nonsense")
    with pytest.raises(IdentityKeyError):
        load_key(path)
    other = generate_private_key(SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(IdentityKeyError, match="not an Ed25519"):
        load_key(path)
    good = Ed25519PrivateKey.generate()
    path.write_bytes(good.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert load_key(path).public_key() == good.public_key()
