"""The credentials that a client sends to the token endpoint (RFC 6749 section 2.3.1)."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from flask import Request


@dataclass(frozen=True)
class Credentials:
    """A client id and a secret, as sent by Basic authentication or in the body."""

    client_id: str | None
    secret: str | None


def read_credentials(request: Request) -> Credentials | None:
    """Return what the client sent, or None if its Authorization header is malformed."""
    header = request.headers.get("Authorization")
    if header is None:
        return Credentials(request.form.get("client_id"), request.form.get("client_secret"))
    scheme, _, encoded = header.partition(" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    client_id, colon, secret = decoded.partition(":")
    return Credentials(client_id, secret) if scheme.lower() == "basic" and colon else None
