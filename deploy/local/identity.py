"""The key pair with which the edge signs who a request is from, and by which the services believe it."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from deploy.local.directory import write_durably
from deploy.local.errors import StackError
from services.edge.identity import IdentityKeyError, load_key


def ensure(private: Path, *publics: Path) -> None:
    """Make the private key (PKCS #8) if it is missing, and of the files for its public half (SubjectPublicKeyInfo) those
    that are. Raises StackError if the private key that is there can't be used."""
    if not private.exists():
        made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_durably(private, made.decode())
    try:
        public = load_key(private).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except IdentityKeyError as error:
        raise StackError(str(error)) from error
    for path in publics:
        if not path.exists():
            write_durably(path, public.decode())
