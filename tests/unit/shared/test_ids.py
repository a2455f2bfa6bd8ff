"""Secrets: their form, their check digits, and that they don't give themselves away."""

from __future__ import annotations

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import Secret, hash_secret, new_secret, well_formed

_environments = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=16)
_DIGITS = string.digits + string.ascii_letters


@given(_environments)
def test_a_new_secret_is_well_formed(environment: str) -> None:
    secret = new_secret(environment)
    assert well_formed(secret.text)
    assert secret.text.startswith(f"kl_{environment}_")
    assert len(secret.text) == len(f"kl_{environment}_") + 39
    assert (secret.prefix, secret.last_four) == (f"kl_{environment}_", secret.text[-4:])
    assert secret.hash == hash_secret(secret.text) == hashlib.sha256(secret.text.encode()).digest()


@given(_environments, st.data())
def test_one_wrong_character_is_seen(environment: str, data: st.DataObject) -> None:
    text = new_secret(environment).text
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(sorted(set(_DIGITS + "_-") - {text[at]})))
    assert not well_formed(text[:at] + other + text[at + 1 :])


@given(st.text())
def test_junk_is_refused(text: str) -> None:
    assert not well_formed(text)
    assert not well_formed(f"kl_live_{text}")


@pytest.mark.parametrize("suffix", ["\n", " ", "\x00", "\u0660"])
def test_a_secret_has_nothing_after_it(suffix: str) -> None:
    assert not well_formed(new_secret("live").text + suffix)


def test_secrets_differ_and_hide() -> None:
    made = {new_secret("live").text for _ in range(1000)}
    assert len(made) == 1000
    secret = Secret(made.pop())
    assert secret.text not in repr(secret)


@pytest.mark.parametrize("environment", ["", "LIVE", "a_b", "x" * 17, "é"])
def test_an_environment_s_name_is_checked(environment: str) -> None:
    with pytest.raises(ValueError, match="environment"):
        new_secret(environment)
