"""API key secrets: how they are made, recognised and hashed.

`kl_<env>_` + 33 base62 digits (192 random bits) + 6 base62 digits of CRC-32 over all before them. The check digits let
the edge refuse junk before any look-up, and secret scanners match without false alarms.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]
_RANDOM_DIGITS = 33
_CHECK_DIGITS = 6
_FORM = re.compile(rf"kl_[a-z0-9]{{1,16}}_[0-9A-Za-z]{{{_RANDOM_DIGITS + _CHECK_DIGITS}}}", re.ASCII)


@dataclass(frozen=True)
class Secret:
    """The plaintext of a key, for the one moment in which it is shown. Its `repr` does not give it away."""

    text: str = field(repr=False)

    @property
    def hash(self) -> bytes:
        """SHA-256: enough for 192 random bits (NIST SP 800-63B, look-up secrets)."""
        return hash_secret(self.text)

    @property
    def prefix(self) -> str:
        """The visible beginning, `kl_<env>_`."""
        return self.text[: self.text.rindex("_") + 1]

    @property
    def last_four(self) -> str:
        """The visible end."""
        return self.text[-4:]


def new_secret(environment: str) -> Secret:
    """A fresh secret for `environment` (1-16 lower-case letters and digits, such as `live`)."""
    body = f"kl_{environment}_{_base62(secrets.randbits(192), _RANDOM_DIGITS)}"
    secret = Secret(body + _check(body))
    if not well_formed(secret.text):
        raise ValueError(f"not an environment's name: {environment!r}")
    return secret


def well_formed(text: str) -> bool:
    """Whether `text` has the form of a secret and its check digits are right; says nothing of whether it was issued."""
    return _FORM.fullmatch(text) is not None and _check(text[:-_CHECK_DIGITS]) == text[-_CHECK_DIGITS:]


def hash_secret(text: str) -> bytes:
    """The 32 bytes under which the system knows the secret."""
    return hashlib.sha256(text.encode()).digest()


def _check(body: str) -> str:
    # In base 62 by two digits at a time: this is done for every request.
    number, third = divmod(zlib.crc32(body.encode()), len(_PAIRS))
    first, second = divmod(number, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[second] + _PAIRS[third]


def _base62(number: int, digits: int) -> str:
    out = []
    for _ in range(digits):
        number, digit = divmod(number, 62)
        out.append(_DIGITS[digit])
    return "".join(reversed(out))
