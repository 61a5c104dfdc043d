"""Fill the tables, and count what the server is asked."""

import base64
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.infra.encryption import TokenCipher
from app.models import AccessToken, SpotifyUser
from app.spotify.tokens.encryption import encrypt_tokens
from benchmarks.progress import progress
from tests.conftest import SETTINGS

CHUNK = 5_000
# The history of refreshes: rows of each connection, and rows that are added at once. One in 100 is a failure.
ROWS_PER_CONNECTION, HISTORY_CHUNK = 96, 500_000
HISTORY = """
INSERT INTO token_refreshes
    (spotify_user_id, grant_id, generation, attempt_id, outcome, effective, started_at, finished_at)
SELECT seq MOD {people}, MD5(seq MOD {people}), seq DIV {people}, MD5(seq + 0.5),
    IF(seq MOD 100, 'refreshed', 'unavailable'), IF(seq MOD 100, 1, NULL),
    UTC_TIMESTAMP(6) - INTERVAL {seconds} * (1 - seq / {rows}) SECOND, UTC_TIMESTAMP(6)
FROM seq_{first}_to_{last}
"""
HISTORY_KEYS = {
    "uq_token_refreshes_attempt_id": ("UNIQUE KEY", "attempt_id"),
    "uq_token_refreshes_effective": ("UNIQUE KEY", "spotify_user_id, grant_id, generation, effective"),
    "ix_token_refreshes_started_at": ("KEY", "started_at"),
}


class Database:
    """The database from outside the app."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def execute(self, statement: Any, values: Any = None) -> list[Any]:
        """Run a statement in a transaction, and return the rows if there are any."""
        with self._engine.begin() as connection:
            if isinstance(statement, str) and values is None:
                found = connection.exec_driver_sql(statement)
            else:
                text = sa.text(statement) if isinstance(statement, str) else statement
                found = connection.execute(text, values)
            return list(found) if found.returns_rows else []

    def milliseconds(self, query: str, times: int = 20) -> float:
        """Return how long a query takes: the median."""
        found = []
        with self._engine.connect() as connection:
            for _ in range(times):
                began = time.perf_counter()
                connection.exec_driver_sql(query).all()
                found.append((time.perf_counter() - began) * 1000)
        return statistics.median(found)

    @property
    def round_trips(self) -> int:
        """How many statements clients have sent so far, without BEGIN, which the app sends with another."""
        query = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Questions', 'Com_begin')"
        counts = {name: int(count) for name, count in self.execute(query)}
        return counts["Questions"] - counts["Com_begin"]

    def insert_connections(self, count: int) -> None:
        """Store connections that are due, with encrypted tokens, after those that exist."""
        cipher = _cipher()
        first = int(self.execute(sa.select(sa.func.coalesce(sa.func.max(SpotifyUser.id), 0)))[0][0]) + 1
        for start in range(first, first + count, CHUNK):
            progress(f"storing connections: {start - first} of {count}")
            ids = range(start, min(start + CHUNK, first + count))
            people = [{"id": number, "spotify_id": f"person{number}"} for number in ids]
            self.execute(sa.insert(SpotifyUser), people)
            self.execute(sa.insert(AccessToken), [_grant(cipher, number) for number in ids])

    def fill_connections(self, size: int) -> None:
        """Add connections until there are `size`. Their tokens have the usual length, but are none.

        One in 90 is due, as at each tick of the scheduler, if a token is refreshed every 45 minutes.
        """
        first = int(self.execute("SELECT COALESCE(MAX(id), 0) FROM spotify_users")[0][0]) + 1
        now, numbers = "UTC_TIMESTAMP(6)", f"FROM seq_{first}_to_{size}"
        due = f"IF(seq MOD 90, {now} + INTERVAL 3600 + seq MOD 2700 SECOND, {now} - INTERVAL 1 MINUTE)"
        key_id = _cipher().newest_key_id
        self.execute(
            "INSERT INTO spotify_users (id, spotify_id, created_at, updated_at, last_used_at)"
            f" SELECT seq, CONCAT('filler', seq), {now}, {now}, {now} {numbers}"
        )
        self.execute(
            "INSERT INTO access_tokens (spotify_user_id, grant_id, generation, state, access_token,"
            " refresh_token, key_id, scope, expires_at, authorized_at, due_at,"
            " failures, created_at, updated_at)"
            f" SELECT seq, LPAD(seq, 32, '0'), 0, 'active', REPEAT('a', 230), REPEAT('r', 160), '{key_id}',"
            f" 'streaming', {due} + INTERVAL 15 MINUTE, {now}, {due}, 0, {now}, {now} {numbers}"
        )

    def fill_history(self, rows: int, within: timedelta) -> None:
        """Replace the history of refreshes by one that began so long ago.

        The indexes are added afterwards, with room in their pages as if they had grown.
        """
        self.execute("SET GLOBAL innodb_buffer_pool_size = 2 * 1024 * 1024 * 1024")
        for variable, value in (("log_file_size", 2**30), ("fill_factor", 70)):
            self.execute(f"SET GLOBAL innodb_{variable} = {value}")
        self.execute("TRUNCATE token_refreshes")
        self.execute(f"ALTER TABLE token_refreshes {', '.join(f'DROP KEY {name}' for name in HISTORY_KEYS)}")
        people, seconds = rows // ROWS_PER_CONNECTION, int(within.total_seconds())
        for first in range(1, rows + 1, HISTORY_CHUNK):
            progress(f"{rows:,} refreshes: {first - 1:,} stored")
            last = min(first + HISTORY_CHUNK - 1, rows)
            values = {"people": people, "seconds": seconds, "rows": rows, "first": first, "last": last}
            self.execute(HISTORY.format(**values))
        progress(f"{rows:,} refreshes: indexes")
        added = ", ".join(f"ADD {kind} {name} ({columns})" for name, (kind, columns) in HISTORY_KEYS.items())
        self.execute(f"ALTER TABLE token_refreshes {added}")

    def release_claims(self) -> None:
        """Undo what a pass has done to the connections that were due."""
        self.execute(
            "UPDATE access_tokens SET due_at = expires_at - INTERVAL 15 MINUTE, lease_until = NULL,"
            " not_before = NULL, failures = 0, attempt_id = NULL"
            " WHERE due_at <> expires_at - INTERVAL 15 MINUTE OR lease_until IS NOT NULL"
        )

    def make_due(self) -> None:
        """Let all tokens expire soon."""
        self.execute(
            "UPDATE access_tokens SET due_at = UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE, not_before = NULL,"
            " refreshed_at = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR,"
            " expires_at = UTC_TIMESTAMP(6) + INTERVAL 9 MINUTE"
        )


def _cipher() -> TokenCipher:
    return TokenCipher([base64.b64decode(key) for key in SETTINGS["TOKEN_ENCRYPTION_KEYS"].split(",")])


def _grant(cipher: TokenCipher, number: int) -> dict[str, object]:
    expires_at = datetime.now(UTC) + timedelta(minutes=9)
    grant = AccessToken(spotify_user_id=number, grant_id=f"{number:032x}")
    return {
        "spotify_user_id": number,
        "grant_id": grant.grant_id,
        "scope": "streaming",
        "expires_at": expires_at,
        "due_at": expires_at - timedelta(minutes=15),
        "authorized_at": expires_at - timedelta(hours=1),
        **encrypt_tokens(cipher, grant, "a" * 200, "r" * 130),
    }
