"""A deployment that records what happens to the grants, and in which time can be advanced."""

import base64
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa

from app.infra.encryption import TokenCipher
from tests.chaos.browser import Browser, follow_retry_after
from tests.chaos.change_log import ChangeLog
from tests.chaos.history import (
    Fault,
    History,
    ReturnedToken,
    Shift,
)
from tests.conftest import SETTINGS
from tests.helpers.deployment import Deployment
from tests.helpers.processes import ApiServer, MariaDb, RedisServer
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, eventually

LEASE_SECONDS = 31  # a little more than a lease
LEAD_SECONDS = 700  # a token that the schedulers refresh is valid for at least this long
SETTLE_SECONDS = 60  # everything must be fresh this long after the last fault
MAX_BACKOFFS = 6
BREAKER_SECONDS = 600  # how much longer it may take if a breaker has to close first


class RecordedDeployment(Deployment):
    """A deployment that records its history since the last `reset`."""

    def __init__(self, database: MariaDb, redis: RedisServer, sandbox: SandboxClient, home: Path) -> None:
        # The rate limit is out of reach.
        super().__init__(database, redis, sandbox, home, REFRESH_RATE="1000", SPOTIFY_APPS="both")
        self.returned: list[ReturnedToken] = []
        self._faults: list[Fault] = []
        self._shifts: list[Shift] = []
        self._stale: list[str] = []
        keys = [base64.b64decode(key) for key in SETTINGS["TOKEN_ENCRYPTION_KEYS"].split(",")]
        self._log = ChangeLog(self.engine, TokenCipher(keys))
        self._numbers = itertools.count(1)
        self._log.start(self.metadata)
        self.metadata.reflect(self.engine)

    # Before and after a scenario.

    def reset(self, *, rotate: bool = False, grace_seconds: int = 0) -> None:
        super().reset()
        self.sandbox.settings(rotate=rotate, **({"rotation_grace_s": grace_seconds} if grace_seconds else {}))
        for what in (self.returned, self._faults, self._shifts, self._stale):
            what.clear()

    def restore(self) -> None:
        """Undo all faults."""
        super().restore()
        self.sandbox.settings(outage=False)
        now = datetime.now(UTC)
        self._faults = [
            replace(f, ended=f.ended or (None if f.kind in ("revoked", "aged") else now))
            for f in self._faults
        ]

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Advance time until every valid grant is fresh. The checker reports those that are not."""
        self.restore()
        passed, seconds = 0.0, seconds + (BREAKER_SECONDS if self._is_paused() else 0)
        pauses = 0  # two confirmations, or a few of the longest backoffs
        if self.stale_connections():
            self.resume_schedulers(2)
        while stale := self._wait_until_fresh(1.2):
            waits = [wait for _, wait in stale]
            if passed >= seconds and (not any(waits) or pauses == MAX_BACKOFFS):
                stale = self._wait_until_fresh(LONG)  # a busy machine may only be slow
                break
            # A confirmation that is due in hours is not late before that.
            step, pauses = (5.0, pauses) if passed < seconds else (max(waits), pauses + 1)
            passed = passed + step if passed < seconds else 0.0
            self.advance_time(step)
        self._stale += [f"{what} {seconds:.0f} s after the last fault" for what, _ in stale]
        self.pause_schedulers()

    def _wait_until_fresh(self, seconds: float) -> list[tuple[str, float]]:
        """Wait for so long at most, without advancing time. Return what is stale then."""
        deadline = time.monotonic() + seconds
        while (stale := self.stale_connections()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return stale

    # People.

    def browser(self, person: str = "mira_t_42") -> Browser:
        return Browser(self.sandbox, self.returned, person, f"user{next(self._numbers)}")

    def connected(self, person: str = "mira_t_42", server: ApiServer | None = None) -> Browser:
        """Return the browser of a person with an account and a connection."""
        server = server or self.servers[0]

        def connects() -> Browser:
            browser = self.browser(person).register(server)
            response = browser.connect(server)
            assert response.status_code == 200, response.text
            return browser

        return eventually(connects)  # on a busy machine, the server may lose patience with Redis

    def connected_with_own_application(
        self, person: str, server: ApiServer | None = None, *, public: bool = False
    ) -> tuple[Browser, dict[str, Any]]:
        """Return the browser of a person who has connected with an application of their own, and that.

        The refresh tokens of public clients rotate.
        """
        server = server or self.servers[0]
        browser = self.browser(person).register(server)
        [application] = self.sandbox.create_applications(1, quota="extended")
        for response in (browser.bring(application, server, public=public), browser.connect(server)):
            assert response.status_code == 200, response.text
        return browser, application

    def consent_again(self, person: str, server: ApiServer | None = None) -> Browser:
        """Consent again from a new browser, which gives the connection another grant."""
        return self.visitor(person, server)

    def visitor(self, person: str, server: ApiServer | None = None) -> Browser:
        """Return the browser of a visitor with a connection. This is faster than with an account."""
        browser, server = self.browser(person), server or self.servers[0]

        def connects() -> bool:
            callback = browser.consent(server)
            response = follow_retry_after(lambda: browser.send_callback(server, callback))
            assert response.status_code == 200, response.text
            return True

        # On a busy machine, the server may lose patience with Redis after it has used the state.
        eventually(connects)
        return browser

    def spotify_user_id_of(self, person: str) -> int:
        with self.engine.connect() as connection:
            query = sa.text("SELECT id FROM spotify_users WHERE spotify_id = :person")
            return int(connection.execute(query, {"person": person}).scalar_one())

    def row(self, spotify_user_id: int) -> Any:
        with self.engine.connect() as connection:
            query = sa.text("SELECT * FROM access_tokens WHERE spotify_user_id = :spotify_user_id")
            return connection.execute(query, {"spotify_user_id": spotify_user_id}).one_or_none()

    # Time.

    def advance_time(self, seconds: float) -> None:
        """Advance time for the rows, for the locks in Redis, and for Spotify."""
        began = datetime.now(UTC)
        with self.engine.begin() as connection:
            for table in self.metadata.sorted_tables:
                if statement := _shift(table, seconds):
                    connection.execute(sa.text(statement))
        self._age_locks(seconds)
        self._forget_snapshots()
        self.sandbox.advance(seconds)
        self._shifts.append(Shift(began, datetime.now(UTC), seconds))

    def outlast_lease(self) -> None:
        self.advance_time(LEASE_SECONDS)

    def expire(self, *spotify_user_ids: int, left: float = -5) -> None:
        """Let these access tokens expire in `left` seconds, as if they had been issued earlier."""
        moved = ("expires_at", "refreshed_at", "authorized_at", "due_at")
        table = self.metadata.tables["access_tokens"]
        columns = [name for name in moved if name in table.columns]
        with self.engine.begin() as connection:
            for spotify_user_id in spotify_user_ids:
                where = "WHERE spotify_user_id = :spotify_user_id"
                asked = f"SELECT expires_at, UTC_TIMESTAMP(6) AS now FROM access_tokens {where} FOR UPDATE"
                row = connection.execute(sa.text(asked), {"spotify_user_id": spotify_user_id}).one_or_none()
                if row is None:
                    continue  # disconnected in the meantime
                by = int(((row.expires_at - row.now).total_seconds() - left) * 1_000_000)
                sets = ", ".join(f"{name} = {name} - INTERVAL :by MICROSECOND" for name in columns)
                changed = f"UPDATE access_tokens SET {sets} {where}"
                connection.execute(sa.text(changed), {"spotify_user_id": spotify_user_id, "by": max(0, by)})
        self._forget_snapshots()

    def _forget_snapshots(self) -> None:
        """Let the servers read the rows again, which we have changed without announcing it."""
        with suppress(redis.RedisError):  # without Redis, they remember nothing
            for key in self.redis.client.scan_iter("version:*"):
                self.redis.client.delete(key)

    def _age_locks(self, seconds: float) -> None:
        try:
            for key in self.redis.client.scan_iter("lock*"):
                left = self.redis.client.pttl(key)
                if left < seconds * 1000:
                    self.redis.client.delete(key)
                else:
                    self.redis.client.pexpire(key, left - int(seconds * 1000))
        except redis.RedisError:
            pass  # without Redis there are no locks

    # Faults.

    def record_fault(self, kind: str, *spotify_user_ids: int) -> None:
        """Record a fault at this moment that may affect these connections, or all."""
        now = datetime.now(UTC)
        ended = None if kind in ("revoked", "aged") else now
        self._faults.append(Fault(kind, now, ended, frozenset(spotify_user_ids) or None))

    @contextmanager
    def recorded_fault(self, kind: str, *spotify_user_ids: int) -> Iterator[None]:
        """Record a fault that lasts as long as the block."""
        fault = Fault(kind, datetime.now(UTC), None, frozenset(spotify_user_ids) or None)
        self._faults.append(fault)
        try:
            yield
        finally:
            now = datetime.now(UTC)
            self._faults = [replace(one, ended=now) if one is fault else one for one in self._faults]

    @contextmanager
    def held_refresh(self, *, after_effect: bool = False) -> Iterator[None]:
        """Hold the next refresh in the sandbox until the block ends. See `wait_for_held_refresh`."""
        self.sandbox.fault(on="refresh", kind="park", times=1, after_effect=after_effect)
        try:
            yield
        finally:
            self.sandbox.release()

    def wait_for_held_refresh(self, count: int = 1) -> None:
        """Wait until the sandbox holds this many refreshes."""
        self.sandbox.wait_for_held(count)

    def revoke(self, person: str) -> None:
        self.record_fault("revoked", self.spotify_user_id_of(person))
        self.sandbox.revoke(person)

    # What happened.

    def refresh_calls(self) -> list[dict[str, Any]]:
        return self.sandbox.calls(grant_type="refresh_token")

    def history(self) -> History:
        """Return everything that happened since the last `reset`."""
        return self._log.history(self.sandbox, self._shifts, self._faults, self.returned, self._stale)

    def stale_connections(self) -> list[tuple[str, float]]:
        """Return a sentence for each valid grant that is not fresh, and the seconds of its backoff."""
        return self._log.stale_connections(self.sandbox, LEAD_SECONDS)

    def _is_paused(self) -> bool:
        """Return whether the breaker is open, or a person's own application is paused."""
        if "breakers" not in self.metadata.tables:
            return False
        is_open = "SELECT 1 FROM breakers WHERE opened_at IS NOT NULL AND closed_at IS NULL"
        return bool(self.sql(f"{is_open} UNION SELECT 2 FROM spotify_apps WHERE state <> 'active'"))


def _shift(table: sa.Table, seconds: float) -> str | None:
    """Return SQL that moves the times of a table back, except for accounts and the logs."""
    if table.name == "users" or table.name.endswith("_log"):
        return None
    moments = [column.name for column in table.columns if isinstance(column.type, sa.DateTime)]
    if not moments:
        return None
    sets = (f"{name} = {name} - INTERVAL {int(seconds * 1_000_000)} MICROSECOND" for name in moments)
    return f"UPDATE {table.name} SET {', '.join(sets)}"
