"""The settings of a development checkout: .env, written once, and the environment."""

import base64
import secrets
from contextlib import suppress
from pathlib import Path

from config import ConfigError, read_environment
from script.supervisor import say

DOTENV = """\
# Written by script/server. Every other setting, with its meaning, is in .env.example.
APP_ENV=development
LOG_FORMAT=console

# Generated for this checkout. Changing them signs everyone out and makes stored Spotify tokens unreadable.
SECRET_KEY={secret_key}
TOKEN_ENCRYPTION_KEYS={token_key}

# script/server starts Redis here, unless one is running already.
REDIS_URL=redis://127.0.0.1:5002/0

# Until these are set, a sandbox takes Spotify's place. .env.example says where to get them.
#SPOTIFY_CLIENT_ID=
#SPOTIFY_CLIENT_SECRET=
"""

START_OVER = "To start over, move .env away: script/server then writes a new one."


class CannotStartError(Exception):
    """Something on this machine prevents the start. The message says what to do."""


def write_dotenv(path: Path) -> None:
    """Write a `.env` with fresh secrets that only its owner can read, unless there is one."""
    token_key = base64.b64encode(secrets.token_bytes(32)).decode()
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(DOTENV.format(secret_key=secrets.token_urlsafe(32), token_key=token_key))
        say("==> Wrote .env with fresh secrets.")


def read_settings() -> dict[str, str]:
    """Read .env and the environment, which takes precedence, as the programs do."""
    try:
        environ = read_environment()
    except ConfigError as error:
        raise CannotStartError(f"{error}\n{START_OVER}") from error
    # The programs are `flask` commands, to which an empty or misspelled APP_ENV means development.
    defaults = {} if environ.get("APP_ENV", "").strip() else {"APP_ENV": "development"}
    return environ | defaults | {"FLASK_RUN_FROM_CLI": "true"}
