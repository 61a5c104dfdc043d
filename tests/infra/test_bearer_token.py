"""The format of personal access tokens."""

import string
import zlib

from app.infra.bearer_token import hash_token, is_well_formed, new_token

# One token, worked out by hand: prefix, 43 characters, and the CRC32 of both in base62.
TEXT = "bl_pat_" + "A" * 43
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    return "".join(BASE62[number // 62**place % 62] for place in reversed(range(6)))


def test_token_has_a_prefix_256_random_bits_and_a_checksum() -> None:
    tokens = {new_token() for _ in range(500)}

    assert len(tokens) == 500
    for token in tokens:
        assert (token[:7], len(token)) == ("bl_pat_", 56)
        assert token[50:] == checksum(token[:50])
        assert is_well_formed(token)


def test_checksum_is_padded() -> None:
    assert any(new_token()[50] == "0" for _ in range(2000))  # 62**5 is a fifth of 2**32


def test_anything_else_is_malformed() -> None:
    assert is_well_formed(TEXT + checksum(TEXT))
    malformed = [
        "",
        TEXT,
        TEXT + checksum(TEXT)[::-1],
        TEXT + checksum(TEXT)[:-1],
        TEXT + checksum(TEXT) + "\n",
        TEXT[:-1] + "B" + checksum(TEXT),
        TEXT[:-1] + "é" + checksum(TEXT[:-1] + "é"),
        TEXT[:-1] + "/" + checksum(TEXT[:-1] + "/"),
        TEXT.upper() + checksum(TEXT.upper()),
        "bl_pat-" + TEXT[7:] + checksum("bl_pat-" + TEXT[7:]),
        TEXT + "A" + checksum(TEXT + "A"),
        "BQ" + "x" * 200,
    ]
    assert [token for token in malformed if is_well_formed(token)] == []


def test_hash_needs_the_key() -> None:
    token = new_token()

    assert hash_token("one key", token) == hash_token("one key", token)
    assert hash_token("one key", token) != hash_token("another key", token)
    assert token not in hash_token("one key", token)
