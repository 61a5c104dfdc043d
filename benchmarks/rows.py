"""Fill the tables, and count what the server is asked."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.infra.encryption import TokenCipher
from app.models import AccessToken, SpotifyUser
from app.spotify.tokens.encryption import encrypt_tokens
from benchmarks.progress import progress
from tests.conftest import SETTINGS

CHUNK = 5_000


class Database:
    """The database from outside the app."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def execute(self, statement: Any, values: Any = None) -> list[Any]:
        """Run a statement in a transaction, and return the rows if there are any."""
        with self._engine.begin() as connection:
            statement = sa.text(statement) if isinstance(statement, str) else statement
            found = connection.execute(statement, values)
            return list(found) if found.returns_rows else []

    @property
    def statements(self) -> int:
        """How many statements clients have sent so far, as the server counts them."""
        return int(self.execute("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])

    def insert_connections(self, count: int, *, due: bool = True) -> None:
        """Store connections with encrypted tokens, after those that exist."""
        keys = SETTINGS["TOKEN_ENCRYPTION_KEYS"].split(",")
        cipher = TokenCipher([base64.b64decode(key) for key in keys])
        first = int(self.execute(sa.select(sa.func.coalesce(sa.func.max(SpotifyUser.id), 0)))[0][0]) + 1
        for start in range(first, first + count, CHUNK):
            progress(f"storing connections: {start - first} of {count}")
            ids = range(start, min(start + CHUNK, first + count))
            people = [{"id": number, "spotify_id": f"person{number}"} for number in ids]
            self.execute(sa.insert(SpotifyUser), people)
            self.execute(sa.insert(AccessToken), [_grant(cipher, number, due) for number in ids])

    def make_due(self) -> None:
        """Let all tokens expire soon."""
        self.execute(
            "UPDATE access_tokens SET due_at = UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE, not_before = NULL,"
            " refreshed_at = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR,"
            " expires_at = UTC_TIMESTAMP(6) + INTERVAL 9 MINUTE"
        )


def _grant(cipher: TokenCipher, number: int, due: bool) -> dict[str, object]:
    expires_at = datetime.now(UTC) + timedelta(minutes=9 if due else 55)
    grant_id = f"{number:032x}"
    return {
        "spotify_user_id": number,
        "grant_id": grant_id,
        "scope": "streaming",
        "expires_at": expires_at,
        "due_at": expires_at - timedelta(minutes=15),
        "authorized_at": expires_at - timedelta(hours=1),
        **encrypt_tokens(cipher, number, grant_id, "a" * 200, "r" * 130),
    }
