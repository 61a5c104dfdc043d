"""A log of every change of a grant, which the database itself keeps, and the history made from it."""

from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import Any

import sqlalchemy as sa

from app.infra.encryption import DecryptionError, TokenCipher
from app.spotify.tokens.encryption import token_context
from tests.chaos.history import (
    UNREADABLE,
    Attempt,
    Change,
    Fault,
    History,
    ReturnedToken,
    SandboxTime,
    Shift,
    as_calls,
    as_issued,
    short_id,
)
from tests.helpers.sandbox_client import SandboxClient

LOGGED = ("access_tokens", "token_refreshes")


class ChangeLog:
    """Records the changes that the product makes in one database."""

    def __init__(self, engine: sa.Engine, cipher: TokenCipher) -> None:
        self.engine = engine
        self._cipher = cipher

    def start(self, metadata: sa.MetaData) -> None:
        """Create the log's tables and triggers. Statements of connections with `@test` are left out."""
        with self.engine.begin() as connection:
            for statement in _logging(metadata):
                connection.execute(sa.text(statement))

    def history(
        self,
        sandbox: SandboxClient,
        shifts: Sequence[Shift],
        faults: Sequence[Fault],
        returned: Sequence[ReturnedToken],
        stale: Sequence[str],
    ) -> History:
        """Return everything that happened since the tables were last emptied."""
        grants = sandbox.tokens()
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.text("SELECT * FROM access_tokens_log WHERE by_test IS NULL ORDER BY log_id")
            ).all()
            refreshes = connection.execute(
                sa.text("SELECT * FROM token_refreshes_log WHERE by_test IS NULL ORDER BY log_id")
            ).all()
        return History(
            changes=[self._change(row) for row in rows],
            attempts=_attempts(refreshes),
            calls=as_calls(sandbox.calls(grant_type="refresh_token"), SandboxTime(shifts)),
            refresh_tokens=as_issued(grants, "refresh_tokens"),
            access_tokens=as_issued(grants, "access_tokens"),
            faults=list(faults),
            shifts=list(shifts),
            returned=list(returned),
            stale=list(stale),
        )

    def _change(self, row: Any) -> Change:
        def decrypted(column: str, context: str) -> str | None:
            encrypted = getattr(row, column, None)
            if encrypted is None:
                return None
            try:
                return short_id(self._cipher.decrypt(encrypted, *token_context(row, context)))
            except DecryptionError:
                return UNREADABLE

        return Change(
            kind=row.log_kind,
            at=row.logged_at.replace(tzinfo=UTC),
            spotify_user_id=row.spotify_user_id,
            grant=row.grant_id,
            generation=row.generation,
            state=row.state,
            access=decrypted("access_token", "access_token"),
            refresh=decrypted("refresh_token", "refresh_token"),
            spare=decrypted("spare_refresh_token", "refresh_token"),
            expires_at=row.expires_at.replace(tzinfo=UTC),
        )

    def stale_connections(self, sandbox: SandboxClient, lead_seconds: int) -> list[tuple[str, float]]:
        """Return a sentence for each valid grant that is not fresh, and the seconds of its backoff.

        The backoff counts only if it may outlast `settle`: before a confirmation, or after many failures
        (seven in a row delay the next attempt by two minutes).
        """
        valid = {
            token for token, issued in as_issued(sandbox.tokens(), "refresh_tokens").items() if issued.live
        }
        query = sa.text(
            "SELECT *, 'update' AS log_kind, UTC_TIMESTAMP(6) AS logged_at FROM access_tokens"
            " WHERE state <> 'reauthorization_required'"
            f" AND (state <> 'active' OR expires_at < UTC_TIMESTAMP(6) + INTERVAL {lead_seconds} SECOND)"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
        stale = []
        for row in rows:
            change = self._change(row)
            if valid.isdisjoint((change.refresh, change.spare)):
                continue
            waits = (row.not_before - row.logged_at).total_seconds() if row.not_before else 0.0
            backoff = waits if waits > 0 and (row.state != "active" or row.failures > 5) else 0.0
            tried = f"{row.failures} failures, not before {waits:.0f} s"
            where = f"connection {change.spotify_user_id}, grant {change.grant[:8]}"
            stale.append((f"{where} was {change.state}, not fresh ({tried})", backoff))
        return stale


def _logging(metadata: sa.MetaData) -> Iterator[str]:
    """Yield SQL that makes the database copy every change of a row into a log table.

    `@test` is set on our own connections only, so it is NULL for the product's changes.
    """
    for name in LOGGED:
        log = f"{name}_log"
        yield (
            f"CREATE TABLE {log} (log_id BIGINT AUTO_INCREMENT PRIMARY KEY, log_kind VARCHAR(8),"
            f" by_test INT, logged_at DATETIME(6)) SELECT * FROM {name} WHERE FALSE"
        )
        columns = [column.name for column in metadata.tables[name].columns]
        into = f"INSERT INTO {log} (log_kind, by_test, logged_at, {', '.join(columns)})"
        for kind, row in (("insert", "NEW"), ("update", "NEW"), ("delete", "OLD")):
            values = ", ".join(f"{row}.{column}" for column in columns)
            yield (
                f"CREATE TRIGGER {log}_{kind} AFTER {kind.upper()} ON {name} FOR EACH ROW"
                f" {into} VALUES ('{kind}', @test, SYSDATE(6), {values})"
            )
        if name == "access_tokens":
            # Deletions by a foreign key fire no trigger. Lock the row before the log row gets its number.
            yield (
                f"CREATE TRIGGER {log}_cascade BEFORE DELETE ON spotify_users FOR EACH ROW"
                f" {into} SELECT 'delete', @test, SYSDATE(6), {', '.join(columns)} FROM {name}"
                " WHERE spotify_user_id = OLD.id FOR UPDATE"
            )


def _attempts(rows: Sequence[Any]) -> list[Attempt]:
    """Return the last state of each attempt, with the times of its first and last change."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for row in rows:
        if row.log_kind != "delete":
            first.setdefault(row.attempt_id, row)
            last[row.attempt_id] = row
    return [
        Attempt(
            spotify_user_id=row.spotify_user_id,
            grant=row.grant_id,
            generation=row.generation,
            attempt_id=attempt_id,
            outcome=row.outcome,
            effective=bool(row.effective),
            began=first[attempt_id].logged_at.replace(tzinfo=UTC),
            ended=None if row.outcome is None else row.logged_at.replace(tzinfo=UTC),
        )
        for attempt_id, row in last.items()
    ]
