"""Short-lived JWTs that tell an app's other services who is calling (RFC 7519, RFC 8725)."""

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.infra.clock import utc_now

LIFETIME = timedelta(minutes=5)


@dataclass(frozen=True)
class IssuedJwt:
    """A JWT, and when it expires."""

    token: str
    expires_at: datetime


class JwtIssuer:
    """Signs JWTs with the newest key, and publishes all keys.

    Args:
        seeds: Ed25519 private keys, 32 bytes each, newest first.
        audiences: The services that a JWT may be for.
    """

    def __init__(self, seeds: Sequence[bytes], audiences: Sequence[str]) -> None:
        keys = [Ed25519PrivateKey.from_private_bytes(seed) for seed in seeds]
        self.audiences = audiences
        self.public_keys = [_public_jwk(key.public_key()) for key in keys]
        self._newest = keys[0]

    def issue(self, user_id: int, audience: str, *, issuer: str) -> IssuedJwt:
        """Return a JWT that tells `audience` who the user is."""
        issued_at = utc_now().replace(microsecond=0)
        expires_at = issued_at + LIFETIME
        claims = {
            "iss": issuer,
            "sub": str(user_id),
            "aud": audience,
            "iat": issued_at,
            "exp": expires_at,
            "jti": secrets.token_hex(16),
        }
        header = {"kid": self.public_keys[0]["kid"]}
        return IssuedJwt(jwt.encode(claims, self._newest, algorithm="EdDSA", headers=header), expires_at)


def _public_jwk(key: Ed25519PublicKey) -> dict[str, Any]:
    """Return a public key as a JWK (RFC 8037), with its thumbprint (RFC 7638) as the key id."""
    x = _base64url(key.public_bytes_raw())
    # The required members, in alphabetical order.
    digest = hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": x,
        "kid": _base64url(digest),
        "alg": "EdDSA",
        "use": "sig",
    }


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
