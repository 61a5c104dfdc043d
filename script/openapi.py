"""Prints the API's OpenAPI document. Run by script/openapi."""

import sys

from app import create_app
from config import Config

# Development's settings. Of all settings, the document shows only the name of the cookie.
SETTINGS = {"APP_ENV": "development", "SECRET_KEY": "unused", "TOKEN_ENCRYPTION_KEYS": "A" * 43 + "="}


def document() -> str:
    """Return the body of GET /api/openapi.json. It needs neither database nor Redis."""
    return create_app(Config.from_env(SETTINGS)).test_client().get("/api/openapi.json").text


if __name__ == "__main__":
    sys.stdout.write(document())
