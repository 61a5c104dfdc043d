"""TokenCipher decrypts only unchanged values, in the same context, with a known key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.infra.encryption import DecryptionError, TokenCipher

OLD, NEW, OTHER = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
CONTEXT = ("access_token", 7, "a" * 32)


@given(text=st.text())
def test_encrypted_text_can_be_decrypted(text: str) -> None:
    cipher = TokenCipher([NEW])

    assert cipher.decrypt(cipher.encrypt(text, *CONTEXT), *CONTEXT) == text


def test_value_cannot_be_decrypted_in_another_context() -> None:
    cipher = TokenCipher([NEW])
    others: list[tuple[object, ...]] = [
        ("refresh_token", 7, "a" * 32),
        ("access_token", 8, "a" * 32),
        ("access_token", 7, "b" * 32),
        ("access_token", 7),
        ("access_token7", "", "a" * 32),
        ("access_token", "7a", "a" * 31),
    ]
    for context in others:
        with pytest.raises(DecryptionError):
            cipher.decrypt(cipher.encrypt("secret", *CONTEXT), *context)


def test_every_changed_byte_is_detected() -> None:
    cipher = TokenCipher([NEW])
    encrypted = cipher.encrypt("secret", *CONTEXT)

    for position in range(len(encrypted)):
        changed = bytearray(encrypted)
        changed[position] ^= 1
        with pytest.raises(DecryptionError):
            cipher.decrypt(bytes(changed), *CONTEXT)
    for length in range(len(encrypted)):
        with pytest.raises(DecryptionError):
            cipher.decrypt(encrypted[:length], *CONTEXT)


def test_old_keys_decrypt_and_the_newest_encrypts() -> None:
    before, after = TokenCipher([OLD]), TokenCipher([NEW, OLD])
    encrypted = before.encrypt("secret", *CONTEXT)

    assert after.decrypt(encrypted, *CONTEXT) == "secret"
    assert TokenCipher([NEW]).decrypt(after.encrypt("secret", *CONTEXT), *CONTEXT) == "secret"
    with pytest.raises(DecryptionError):
        TokenCipher([OTHER]).decrypt(encrypted, *CONTEXT)


def test_equal_secrets_have_different_ciphertexts() -> None:
    cipher = TokenCipher([NEW])

    assert len({cipher.encrypt("secret", *CONTEXT) for _ in range(1000)}) == 1000
