"""The key pair with which the edge signs who a request is from, and by which the services believe it."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from deploy.local.directory import Directory, write_durably


def ensure(directory: Directory) -> None:
    """Make `secrets/identity.pem` (PKCS #8) and `secrets/identity-public.pem` (SubjectPublicKeyInfo) if they are missing.

    The public half is written first: a crash between the two leaves no private key, and both are made again.
    """
    private = directory.secrets / "identity.pem"
    if private.exists():
        return
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_durably(directory.secrets / "identity-public.pem", public.decode())
    write_durably(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
