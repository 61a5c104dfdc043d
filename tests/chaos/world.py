"""A deployment of real processes. Everything between them can be broken, and time can be advanced."""

import base64
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
import requests
import sqlalchemy as sa

from app.infra.encryption import DecryptionError, TokenCipher
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
)
from tests.chaos.processes import ApiServer, MariaDb, Product, RedisServer, SandboxSpotify, Scheduler
from tests.conftest import SETTINGS
from tests.helpers.fault_proxy import Upstream
from tests.helpers.sandbox_client import REDIRECT_URI, SandboxClient, callback_query
from tests.helpers.servers import ROOT, _directory, eventually, migrate

T = TypeVar("T")
PASSWORD = "a long sentence is best"
# All servers share a redirect URI, so a person may return to another one. The rate limit is out of reach.
SERVER_SETTINGS = {
    **SETTINGS,
    "SPOTIFY_REDIRECT_URI": REDIRECT_URI,
    "LOG_LEVEL": "INFO",
    "REFRESH_RATE": "1000",
}
LEASE_SECONDS = 31  # a little more than a lease
LEAD_SECONDS = 700  # a token that the schedulers refresh is valid for at least this long
SETTLE_SECONDS = 60  # everything must be fresh this long after the last fault
MAX_BACKOFFS = 6
BREAKER_SECONDS = 600  # how much longer it may take if a breaker has to close first
LOGGED = ("access_tokens", "token_refreshes")


class Browser:
    """One person's browser. It can use any server, because cookies ignore ports."""

    def __init__(self, world: "World", person: str, username: str) -> None:
        self.world = world
        self.person = person
        self.username = username
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.headers.update({"X-Requested-With": "chaos", "Accept": "application/json"})

    def call(self, method: str, path: str, server: ApiServer, **request: Any) -> requests.Response:
        return self._http.request(method, f"{server.url}{path}", timeout=40, **request)

    def register(self, server: ApiServer) -> "Browser":
        account = {"username": self.username, "email": f"{self.username}@example.com", "password": PASSWORD}
        response = self.call("POST", "/api/register", server, json=account)
        assert response.status_code == 201, response.text
        return self

    def login(self, server: ApiServer) -> requests.Response:
        return self.call("POST", "/api/login", server, json={"login": self.username, "password": PASSWORD})

    def another(self) -> "Browser":
        """Return another browser of the same person, not signed in."""
        return Browser(self.world, self.person, self.username)

    def connect(self, server: ApiServer) -> requests.Response:
        """Connect Spotify, as a person without a connection. Returns the last response."""
        return self.send_callback(server, self.consent(server))

    def consent(self, server: ApiServer) -> dict[str, str]:
        """Consent at Spotify. Returns the parameters of the callback."""
        visit = self.call("GET", "/api/spotify/authorize", server)
        assert "authorize_url" in visit.text, visit.text
        url = visit.json()["authorize_url"]
        # Bypass the server's proxy to Spotify: a person's browser is not affected by its faults.
        direct = urlsplit(self.world.sandbox.url)
        url = urlsplit(url)._replace(netloc=direct.netloc).geturl()
        return callback_query(self.world.sandbox.consent(url, person=self.person))

    def send_callback(self, server: ApiServer, callback: dict[str, str]) -> requests.Response:
        return self.call("GET", "/api/spotify/authorize", server, params=callback)

    def token(self, server: ApiServer) -> requests.Response:
        response = self.call("GET", "/api/spotify/token", server)
        if response.status_code == 200:
            token = short_id(response.json()["access_token"])
            self.world.returned.append(ReturnedToken(datetime.now(UTC), self.person, token))
        return response

    def awaited_token(self, server: ApiServer) -> requests.Response:
        return follow_retry_after(lambda: self.token(server))

    def disconnect(self, server: ApiServer) -> requests.Response:
        return self.call("DELETE", "/api/spotify", server)


def follow_retry_after(ask: Callable[[], requests.Response]) -> requests.Response:
    """Retry while Spotify counts as slow, as it can on a busy machine."""
    for _ in range(10):
        response = ask()
        if response.status_code != 503:
            break
        time.sleep(int(response.headers["Retry-After"]))
    return response


@dataclass
class World:
    """The servers, and what happened to them since the last `reset`."""

    database: MariaDb
    redis: RedisServer
    sandbox: SandboxClient
    upstreams: Mapping[str, Upstream]
    home: Path
    rotate: bool = False
    grace_seconds: int = 0

    def __post_init__(self) -> None:
        # `@harness` marks our own changes in the log. Our statements must not wait long for a lock.
        session = {"init_command": "SET @harness = 1, innodb_lock_wait_timeout = 3", "read_timeout": 10}
        session["connect_timeout"] = 2
        self.engine = sa.create_engine(
            self.database.url, poolclass=sa.NullPool, isolation_level="READ COMMITTED", connect_args=session
        )
        self.metadata = sa.MetaData()
        self.returned: list[ReturnedToken] = []
        self._faults: list[Fault] = []
        self._shifts: list[Shift] = []
        self._stale: list[str] = []
        keys = [base64.b64decode(key) for key in SETTINGS["TOKEN_ENCRYPTION_KEYS"].split(",")]
        self._cipher = TokenCipher(keys)
        self._pool = ThreadPoolExecutor(48, thread_name_prefix="client")
        self._numbers = itertools.count(1)
        self.servers: list[ApiServer] = []
        self.schedulers: list[Scheduler] = []

    # Before and after a scenario.

    def prepare(self) -> None:
        """Read the schema, and make the database log every change of the important tables."""
        self.metadata.reflect(self.engine)
        with self.engine.begin() as connection:
            for statement in _logging(self.metadata):
                connection.execute(sa.text(statement))
        self.metadata.clear()
        self.metadata.reflect(self.engine)

    def run_product(self, root: Path = ROOT, *, servers: int = 2, schedulers: int = 2) -> None:
        """Start Backline's processes with the code in `root`, after stopping those that are running."""
        self.close()
        self.servers = [
            ApiServer(f"server{n}", root, self.home, SERVER_SETTINGS, self.upstreams) for n in range(servers)
        ]
        self.schedulers = [
            Scheduler(f"scheduler{n}", root, self.home, SERVER_SETTINGS, self.upstreams)
            for n in range(schedulers)
        ]
        for product in self.products:
            product.heal()
        for product in self.products:
            product.wait_until_up()

    def reset(self, *, rotate: bool = False, grace_seconds: int = 0) -> None:
        """Start everything, undo all faults, and delete all data."""
        self.rotate, self.grace_seconds = rotate, grace_seconds
        self.heal()
        self.pause_schedulers()
        for process in self.servers:
            process.wait_until_up()
        with self.engine.begin() as connection:
            for table in reversed(self.metadata.sorted_tables):
                if table.name != "alembic_version":
                    connection.execute(table.delete())
        self.redis.client.flushall()
        self.sandbox.reset()
        self.sandbox.settings(rotate=rotate, **({"rotation_grace_s": grace_seconds} if grace_seconds else {}))
        for what in (self.returned, self._faults, self._shifts, self._stale):
            what.clear()

    def heal(self) -> None:
        """Undo all faults."""
        self.sandbox.clear_faults()
        self.sandbox.settings(outage=False)
        for service in (self.database, self.redis):
            service.resume()
            service.start()
        for product in self.products:
            product.heal()
        for server in self.servers:
            server.resume()
        now = datetime.now(UTC)
        self._faults = [
            replace(f, ended=f.ended or (None if f.kind in ("revoked", "aged") else now))
            for f in self._faults
        ]

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Advance time until every valid grant is fresh. The checker reports those that are not."""
        self.heal()
        passed, seconds = 0.0, seconds + (BREAKER_SECONDS if self._breaker_is_open() else 0)
        pauses = 0  # two confirmations, or a few of the longest backoffs
        stale = self.stale_connections()
        if stale:
            self.resume_schedulers(2)
        while stale:
            deadline = time.monotonic() + 1.2
            while stale and time.monotonic() < deadline:
                time.sleep(0.05)
                stale = self.stale_connections()
            waits = [wait for _, wait in stale]
            if not stale or (passed >= seconds and (not any(waits) or pauses == MAX_BACKOFFS)):
                break
            # A confirmation that is due in hours is not late before that.
            step, pauses = (5.0, pauses) if passed < seconds else (max(waits), pauses + 1)
            passed = passed + step if passed < seconds else 0.0
            self.advance_time(step)
        self._stale += [f"{what} {seconds:.0f} s after the last fault" for what, _ in stale]
        self.pause_schedulers()

    def close(self) -> None:
        """End Backline's processes."""
        for product in self.products:
            product.close()
        self.servers, self.schedulers = [], []

    # People and processes.

    @property
    def products(self) -> list[Product]:
        return [*self.servers, *self.schedulers]

    def browser(self, person: str = "mira_t_42") -> Browser:
        return Browser(self, person, f"user{next(self._numbers)}")

    def connected(self, person: str = "mira_t_42", server: ApiServer | None = None) -> Browser:
        """Return the browser of a person with an account and a connection."""
        server = server or self.servers[0]
        browser = self.browser(person).register(server)
        response = browser.connect(server)
        assert response.status_code == 200, response.text
        return browser

    def consent_again(self, person: str, server: ApiServer | None = None) -> Browser:
        """Consent again from a new browser, which gives the connection another grant."""
        return self.visitor(person, server)

    def visitor(self, person: str, server: ApiServer | None = None) -> Browser:
        """Return the browser of a visitor with a connection. This is faster than with an account."""
        browser, server = self.browser(person), server or self.servers[0]
        callback = browser.consent(server)
        response = follow_retry_after(lambda: browser.send_callback(server, callback))
        assert response.status_code == 200, response.text
        return browser

    def spotify_user_id_of(self, person: str) -> int:
        with self.engine.connect() as connection:
            asked = sa.text("SELECT id FROM spotify_users WHERE spotify_id = :person")
            return int(connection.execute(asked, {"person": person}).scalar_one())

    def row(self, spotify_user_id: int) -> Any:
        with self.engine.connect() as connection:
            asked = sa.text("SELECT * FROM access_tokens WHERE spotify_user_id = :spotify_user_id")
            return connection.execute(asked, {"spotify_user_id": spotify_user_id}).one_or_none()

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Run a function in the background."""
        return self._pool.submit(function, *arguments)

    # Time.

    def advance_time(self, seconds: float) -> None:
        """Advance time for the rows, for the locks in Redis, and for Spotify."""
        began = datetime.now(UTC)
        with self.engine.begin() as connection:
            for table in self.metadata.sorted_tables:
                if statement := _shift(table, seconds):
                    connection.execute(sa.text(statement))
        self._age_locks(seconds)
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

    def resume_schedulers(self, count: int | None = None) -> None:
        for scheduler in self.schedulers[:count]:
            scheduler.launch()
            scheduler.resume()

    def pause_schedulers(self) -> None:
        """Pause the schedulers, but not during a transaction, whose locks would remain."""
        for scheduler in self.schedulers:
            scheduler.wait_until_up()

        def stopped() -> bool:
            for scheduler in self.schedulers:
                scheduler.pause()
            # Check twice: a statement may have been on its way when its sender was paused.
            if self.rows_are_free() and self.sandbox.held() == 0:
                time.sleep(0.03)
                if self.rows_are_free():
                    return True
            for scheduler in self.schedulers:
                scheduler.resume()
            return False

        if not all(scheduler.is_paused for scheduler in self.schedulers):
            eventually(stopped)

    # What happened.

    def refresh_calls(self) -> list[dict[str, Any]]:
        return self.sandbox.calls(grant_type="refresh_token")

    def history(self) -> History:
        """Return everything that happened since the last `reset`."""
        time = SandboxTime(self._shifts)
        grants = self.sandbox.tokens()
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.text("SELECT * FROM access_tokens_log WHERE harness IS NULL ORDER BY log_id")
            ).all()
            refreshes = connection.execute(
                sa.text("SELECT * FROM token_refreshes_log WHERE harness IS NULL ORDER BY log_id")
            ).all()
        return History(
            changes=[self._change(row) for row in rows],
            attempts=_attempts(refreshes),
            calls=as_calls(self.sandbox.calls(grant_type="refresh_token"), time),
            refresh_tokens=as_issued(grants, "refresh_tokens"),
            access_tokens=as_issued(grants, "access_tokens"),
            faults=list(self._faults),
            shifts=list(self._shifts),
            returned=list(self.returned),
            stale=list(self._stale),
        )

    def _change(self, row: Any) -> Change:
        def opened(column: str, context: str) -> str | None:
            sealed = getattr(row, column, None)
            if sealed is None:
                return None
            try:
                return short_id(self._cipher.decrypt(sealed, context, row.spotify_user_id, row.grant_id))
            except DecryptionError:
                return UNREADABLE

        return Change(
            kind=row.log_kind,
            at=row.logged_at.replace(tzinfo=UTC),
            spotify_user_id=row.spotify_user_id,
            grant=row.grant_id,
            generation=row.generation,
            state=row.state,
            access=opened("access_token", "access_token"),
            refresh=opened("refresh_token", "refresh_token"),
            spare=opened("spare_refresh_token", "refresh_token"),
            expires_at=row.expires_at.replace(tzinfo=UTC),
        )

    def stale_connections(self) -> list[tuple[str, float]]:
        """Return a sentence for each valid grant that is not fresh, and the seconds of its backoff.

        The backoff counts only if it may outlast `settle`: before a confirmation, or after many failures
        (seven in a row delay the next attempt by two minutes).
        """
        good = {
            token
            for token, issued in as_issued(self.sandbox.tokens(), "refresh_tokens").items()
            if issued.live
        }
        asked = sa.text(
            "SELECT *, 'update' AS log_kind, UTC_TIMESTAMP(6) AS logged_at FROM access_tokens"
            " WHERE state <> 'reauthorization_required'"
            f" AND (state <> 'active' OR expires_at < UTC_TIMESTAMP(6) + INTERVAL {LEAD_SECONDS} SECOND)"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(asked).all()
        stale = []
        for row in rows:
            change = self._change(row)
            if good.isdisjoint((change.refresh, change.spare)):
                continue
            waits = (row.not_before - row.logged_at).total_seconds() if row.not_before else 0.0
            backoff = waits if waits > 0 and (row.state != "active" or row.failures > 5) else 0.0
            tried = f"{row.failures} failures, not before {waits:.0f} s"
            where = f"connection {change.spotify_user_id}, grant {change.grant[:8]}"
            stale.append((f"{where} was {change.state}, not fresh ({tried})", backoff))
        return stale

    def _breaker_is_open(self) -> bool:
        if "breakers" not in self.metadata.tables:
            return False
        with self.engine.connect() as connection:
            asked = sa.text("SELECT count(*) FROM breakers WHERE opened_at IS NOT NULL AND closed_at IS NULL")
            return bool(connection.execute(asked).scalar())

    def rows_are_free(self) -> bool:
        """Return whether no transaction holds a lock on a row.

        This locks the rows, because `innodb_trx` is cached while it is queried more than ten times a second.
        """
        try:
            with self.engine.connect() as connection:
                for table in self.metadata.sorted_tables:
                    connection.execute(sa.text(f"SELECT 1 FROM {table.name} FOR UPDATE NOWAIT"))
        except sa.exc.OperationalError:
            return False
        return True


@contextmanager
def running_world() -> Iterator[World]:
    """Start the servers that Backline needs, with a migrated database."""
    with ExitStack() as stack:
        homes = [stack.enter_context(_directory()) for _ in range(3)]
        database = stack.enter_context(MariaDb(homes[0]))
        store = stack.enter_context(RedisServer(homes[1]))
        sandbox = stack.enter_context(SandboxSpotify(homes[2], REDIRECT_URI))
        upstreams: dict[str, Upstream] = {
            "database": database.socket,
            "redis": store.socket,
            "spotify": sandbox.address,
        }
        migrate({**SERVER_SETTINGS, "DATABASE_URL": database.url, "REDIS_URL": f"unix://{store.socket}"})
        world = World(database, store, sandbox.client, upstreams, homes[2])
        stack.callback(world.close)
        world.prepare()
        yield world


def short_id(token: str) -> str:
    """Return the name by which the sandbox's journal refers to a token."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def _logging(metadata: sa.MetaData) -> Iterator[str]:
    """Yield SQL that makes the database copy every change of a row into a log table.

    `@harness` is set on our own connections only, so it is NULL for the product's changes.
    """
    for name in LOGGED:
        log = f"{name}_log"
        yield (
            f"CREATE TABLE {log} (log_id BIGINT AUTO_INCREMENT PRIMARY KEY, log_kind VARCHAR(8),"
            f" harness INT, logged_at DATETIME(6)) SELECT * FROM {name} WHERE FALSE"
        )
        columns = [column.name for column in metadata.tables[name].columns]
        into = f"INSERT INTO {log} (log_kind, harness, logged_at, {', '.join(columns)})"
        for kind, row in (("insert", "NEW"), ("update", "NEW"), ("delete", "OLD")):
            values = ", ".join(f"{row}.{column}" for column in columns)
            yield (
                f"CREATE TRIGGER {log}_{kind} AFTER {kind.upper()} ON {name} FOR EACH ROW"
                f" {into} VALUES ('{kind}', @harness, SYSDATE(6), {values})"
            )
        if name == "access_tokens":
            # Deletions by a foreign key fire no trigger. Lock the row before the log row gets its number.
            yield (
                f"CREATE TRIGGER {log}_cascade BEFORE DELETE ON spotify_users FOR EACH ROW"
                f" {into} SELECT 'delete', @harness, SYSDATE(6), {', '.join(columns)} FROM {name}"
                " WHERE spotify_user_id = OLD.id FOR UPDATE"
            )


def _shift(table: sa.Table, seconds: float) -> str | None:
    """Return SQL that moves the times of a table back, except for accounts and the logs."""
    if table.name == "users" or table.name.endswith("_log"):
        return None
    moments = [column.name for column in table.columns if isinstance(column.type, sa.DateTime)]
    if not moments:
        return None
    sets = (f"{name} = {name} - INTERVAL {int(seconds * 1_000_000)} MICROSECOND" for name in moments)
    return f"UPDATE {table.name} SET {', '.join(sets)}"


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
