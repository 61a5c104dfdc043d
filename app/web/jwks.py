"""The public keys that verify this server's JWTs (RFC 7517)."""

from collections.abc import Sequence
from typing import Any

import msgspec
from flask import Blueprint, Flask, Response

from app.web.access import public
from app.web.api import json_response

# How long a service may use the keys without reading them again.
MAX_AGE_SECONDS = 300


def init_app(app: Flask, public_keys: Sequence[dict[str, Any]]) -> None:
    """Add `/.well-known/jwks.json`, if there are keys."""
    if not public_keys:
        return
    blueprint = Blueprint("jwks", __name__)
    body = msgspec.json.encode({"keys": public_keys})

    @blueprint.get("/.well-known/jwks.json")
    @public
    def jwks() -> Response:
        """Return the keys, which any page and any cache may read."""
        response = json_response(body)
        response.headers["Cache-Control"] = f"max-age={MAX_AGE_SECONDS}"
        response.headers["Access-Control-Allow-Origin"] = "*"
        return response

    app.register_blueprint(blueprint)
