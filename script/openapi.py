"""Asks an app of no particular settings for its document. Run by script/openapi."""

import base64
import sys

from app import create_app
from config import Config

# The document depends on the cookie's name alone; these are development's settings.
SETTINGS = {
    "APP_ENV": "development",
    "SECRET_KEY": "for-nobody",
    "TOKEN_ENCRYPTION_KEYS": base64.b64encode(bytes(32)).decode(),
}


def document() -> str:
    """The body of the answer. It needs neither database nor Redis."""
    answer = create_app(Config.from_env(SETTINGS)).test_client().get("/api/openapi.json")
    assert answer.status_code == 200, answer.text
    return answer.text


if __name__ == "__main__":
    sys.stdout.write(document())
