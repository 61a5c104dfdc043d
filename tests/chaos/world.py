"""A whole Backline of real processes: everything between them can be broken, and time passes on command."""

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
    Handed,
    History,
    SandboxTime,
    Shift,
    as_calls,
    as_issued,
)
from tests.chaos.processes import ApiServer, MariaDb, Product, RedisServer, SandboxSpotify, Scheduler
from tests.conftest import SETTINGS
from tests.helpers.fault_proxy import Upstream
from tests.helpers.sandbox_client import REDIRECT_URI, SandboxClient, answer_of
from tests.helpers.servers import ROOT, _directory, eventually, migrate

T = TypeVar("T")
PASSWORD = "a long sentence is best"
# Connected at one server and come back to at another: the redirect URI is everybody's. A pace that
# nobody notices, because time is short here.
SERVER_SETTINGS = {
    **SETTINGS,
    "SPOTIFY_REDIRECT_URI": REDIRECT_URI,
    "LOG_LEVEL": "INFO",
    "REFRESH_RATE": "1000",
}
LEASE_SECONDS = 31  # a little more than a lease
LEAD_SECONDS = 700  # how long a token that the schedulers look after lasts at the least
SETTLE_SECONDS = 60  # within which everything has to be fresh after the last fault
MOST_PAUSES = 6
BREAKER_SECONDS = 600  # and how much longer it may take where a breaker has to close first
LOGGED = ("access_tokens", "token_refreshes")


class Browser:
    """One person's browser. It may talk to any server: cookies do not know ports."""

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
        """Another browser of the same person, not signed in."""
        return Browser(self.world, self.person, self.username)

    def connect(self, server: ApiServer) -> requests.Response:
        """Connect Spotify, as somebody whom the server knows no connection of. Returns the last answer."""
        return self.come_back(server, self.consent(server))

    def consent(self, server: ApiServer) -> dict[str, str]:
        """Go to Spotify and agree. Returns what the browser is sent back with."""
        visit = self.call("GET", "/api/spotify/authorize", server)
        assert "authorize_url" in visit.text, visit.text
        url = visit.json()["authorize_url"]
        # Past the server's own way to Spotify: what is broken there is not this person's trouble.
        direct = urlsplit(self.world.sandbox.url)
        url = urlsplit(url)._replace(netloc=direct.netloc).geturl()
        return answer_of(self.world.sandbox.consent(url, person=self.person))

    def come_back(self, server: ApiServer, callback: dict[str, str]) -> requests.Response:
        return self.call("GET", "/api/spotify/authorize", server, params=callback)

    def token(self, server: ApiServer) -> requests.Response:
        response = self.call("GET", "/api/spotify/token", server)
        if response.status_code == 200:
            token = short_id(response.json()["access_token"])
            self.world.handed.append(Handed(datetime.now(UTC), self.person, token))
        return response

    def awaited_token(self, server: ApiServer) -> requests.Response:
        return follow_retry_after(lambda: self.token(server))

    def disconnect(self, server: ApiServer) -> requests.Response:
        return self.call("DELETE", "/api/spotify", server)


def follow_retry_after(ask: Callable[[], requests.Response]) -> requests.Response:
    """Ask again while Spotify counts as slow: on a busy machine, it may."""
    for _ in range(10):
        response = ask()
        if response.status_code != 503:
            break
        time.sleep(int(response.headers["Retry-After"]))
    return response


@dataclass
class World:
    """The servers, and what was done to them since the last `reset`."""

    database: MariaDb
    redis: RedisServer
    sandbox: SandboxClient
    upstreams: Mapping[str, Upstream]
    home: Path
    rotate: bool = False
    grace_seconds: int = 0

    def __post_init__(self) -> None:
        # Marked, so that the log can tell what the harness does; and never waiting long for a lock.
        session = {"init_command": "SET @harness = 1, innodb_lock_wait_timeout = 3", "read_timeout": 10}
        session["connect_timeout"] = 2
        self.engine = sa.create_engine(
            self.database.url, poolclass=sa.NullPool, isolation_level="READ COMMITTED", connect_args=session
        )
        self.metadata = sa.MetaData()
        self.handed: list[Handed] = []
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
        """Learn the tables, and let the database log every change of those that matter."""
        self.metadata.reflect(self.engine)
        with self.engine.begin() as connection:
            for statement in _logging(self.metadata):
                connection.execute(sa.text(statement))
        self.metadata.clear()
        self.metadata.reflect(self.engine)

    def run_product(self, root: Path = ROOT, *, servers: int = 2, schedulers: int = 2) -> None:
        """Start Backline's processes, with the code in `root`. Those that ran before are ended."""
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
        """Everything runs, nothing is broken, and nobody is known."""
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
        for what in (self.handed, self._faults, self._shifts, self._stale):
            what.clear()

    def heal(self) -> None:
        """Undo every fault there is."""
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
        """Let time pass until every grant that lives is fresh. The checker is told what is not by then."""
        self.heal()
        passed, seconds = 0.0, seconds + (BREAKER_SECONDS if self._breaker_is_open() else 0)
        pauses = 0  # waited for: two confirmations, or a few of the longest pauses after failures
        stale = self.stale_links()
        if stale:
            self.resume_schedulers(2)
        while stale:
            deadline = time.monotonic() + 1.2
            while stale and time.monotonic() < deadline:
                time.sleep(0.05)
                stale = self.stale_links()
            waits = [wait for _, wait in stale]
            if not stale or (passed >= seconds and (not any(waits) or pauses == MOST_PAUSES)):
                break
            # Somebody who waits for a confirmation that is due in hours is not late before that.
            step, pauses = (5.0, pauses) if passed < seconds else (max(waits), pauses + 1)
            passed = passed + step if passed < seconds else 0.0
            self.pass_time(step)
        self._stale += [f"{what} {seconds:.0f} s after the last fault" for what, _ in stale]
        self.pause_schedulers()

    def close(self) -> None:
        """End Backline's processes."""
        for product in self.products:
            product.close()
        self.servers, self.schedulers = [], []

    # Who takes part.

    @property
    def products(self) -> list[Product]:
        return [*self.servers, *self.schedulers]

    def browser(self, person: str = "mira_t_42") -> Browser:
        return Browser(self, person, f"user{next(self._numbers)}")

    def connected(self, person: str = "mira_t_42", server: ApiServer | None = None) -> Browser:
        """Somebody with an account, who has connected Spotify."""
        server = server or self.servers[0]
        browser = self.browser(person).register(server)
        response = browser.connect(server)
        assert response.status_code == 200, response.text
        return browser

    def link_anew(self, person: str, server: ApiServer | None = None) -> Browser:
        """Consent once more from a browser that is new here: the link gets another grant."""
        return self.visitor(person, server)

    def visitor(self, person: str, server: ApiServer | None = None) -> Browser:
        """Somebody without an account, who has connected Spotify: quicker to have."""
        browser, server = self.browser(person), server or self.servers[0]
        callback = browser.consent(server)
        response = follow_retry_after(lambda: browser.come_back(server, callback))
        assert response.status_code == 200, response.text
        return browser

    def link_of(self, person: str) -> int:
        with self.engine.connect() as connection:
            asked = sa.text("SELECT id FROM spotify_users WHERE spotify_id = :person")
            return int(connection.execute(asked, {"person": person}).scalar_one())

    def row(self, link: int) -> Any:
        with self.engine.connect() as connection:
            asked = sa.text("SELECT * FROM access_tokens WHERE spotify_user_id = :link")
            return connection.execute(asked, {"link": link}).one_or_none()

    def later(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Do it in the background."""
        return self._pool.submit(function, *arguments)

    # Time.

    def pass_time(self, seconds: float) -> None:
        """Let time pass for everybody: for the rows, for the locks in Redis, and for Spotify."""
        began = datetime.now(UTC)
        with self.engine.begin() as connection:
            for table in self.metadata.sorted_tables:
                if statement := _shift(table, seconds):
                    connection.execute(sa.text(statement))
        self._age_locks(seconds)
        self.sandbox.advance(seconds)
        self._shifts.append(Shift(began, datetime.now(UTC), seconds))

    def pass_lease(self) -> None:
        self.pass_time(LEASE_SECONDS)

    def run_out(self, *links: int, left: float = -5) -> None:
        """Let these links' access tokens have `left` seconds to live, as if they had been made sooner."""
        moved = ("expires_at", "refreshed_at", "authorized_at", "due_at")
        table = self.metadata.tables["access_tokens"]
        columns = [name for name in moved if name in table.columns]
        with self.engine.begin() as connection:
            for link in links:
                where = "WHERE spotify_user_id = :link"
                asked = f"SELECT expires_at, UTC_TIMESTAMP(6) AS now FROM access_tokens {where} FOR UPDATE"
                row = connection.execute(sa.text(asked), {"link": link}).one_or_none()
                if row is None:
                    continue  # disconnected meanwhile
                by = int(((row.expires_at - row.now).total_seconds() - left) * 1_000_000)
                sets = ", ".join(f"{name} = {name} - INTERVAL :by MICROSECOND" for name in columns)
                changed = f"UPDATE access_tokens SET {sets} {where}"
                connection.execute(sa.text(changed), {"link": link, "by": max(0, by)})

    def _age_locks(self, seconds: float) -> None:
        try:
            for key in self.redis.client.scan_iter("lock*"):
                left = self.redis.client.pttl(key)
                if left < seconds * 1000:
                    self.redis.client.delete(key)
                else:
                    self.redis.client.pexpire(key, left - int(seconds * 1000))
        except redis.RedisError:
            pass  # a Redis that is down keeps no locks

    # Faults.

    def broke(self, kind: str, *links: int) -> None:
        """Note something that was broken at this moment, on these links or any."""
        now = datetime.now(UTC)
        ended = None if kind in ("revoked", "aged") else now
        self._faults.append(Fault(kind, now, ended, frozenset(links) or None))

    @contextmanager
    def broken(self, kind: str, *links: int) -> Iterator[None]:
        """Note that something is broken for the length of the block."""
        fault = Fault(kind, datetime.now(UTC), None, frozenset(links) or None)
        self._faults.append(fault)
        try:
            yield
        finally:
            now = datetime.now(UTC)
            self._faults = [replace(one, ended=now) if one is fault else one for one in self._faults]

    @contextmanager
    def parked(self, *, after_effect: bool = False) -> Iterator[None]:
        """Hold the next refresh in the sandbox. Inside the block `arrived` waits for it."""
        self.sandbox.fault(on="refresh", kind="park", times=1, after_effect=after_effect)
        try:
            yield
        finally:
            self.sandbox.release()

    def arrived(self, count: int = 1) -> None:
        """Wait until a refresh is being held in the sandbox."""
        self.sandbox.wait_for_held(count)

    def revoke(self, person: str) -> None:
        self.broke("revoked", self.link_of(person))
        self.sandbox.revoke(person)

    def resume_schedulers(self, count: int | None = None) -> None:
        for scheduler in self.schedulers[:count]:
            scheduler.launch()
            scheduler.resume()

    def pause_schedulers(self) -> None:
        """Stop the schedulers, but not in the middle of a transaction, whose locks would stay."""
        for scheduler in self.schedulers:
            scheduler.wait_until_up()

        def stopped() -> bool:
            for scheduler in self.schedulers:
                scheduler.pause()
            # A statement may still have been on its way when its sender was stopped: hence twice.
            if self.rows_are_free() and self.sandbox.held() == 0:
                time.sleep(0.03)
                if self.rows_are_free():
                    return True
            for scheduler in self.schedulers:
                scheduler.resume()
            return False

        if not all(scheduler.is_paused for scheduler in self.schedulers):
            eventually(stopped)

    # What there is to see.

    def refresh_calls(self) -> list[dict[str, Any]]:
        return self.sandbox.calls(grant_type="refresh_token")

    def history(self) -> History:
        """Everything that happened since the last `reset`."""
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
            handed=list(self.handed),
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
            link=row.spotify_user_id,
            grant=row.grant_id,
            generation=row.generation,
            state=row.state,
            access=opened("access_token", "access_token"),
            refresh=opened("refresh_token", "refresh_token"),
            spare=opened("spare_refresh_token", "refresh_token"),
            expires_at=row.expires_at.replace(tzinfo=UTC),
        )

    def stale_links(self) -> list[tuple[str, float]]:
        """Grants that live and are not fresh: a sentence each, and how long it is left alone as yet.

        Either to be confirmed, or after many failures of its own, which may be for longer than anything
        takes to settle: seven in a row make a pause of two minutes.
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
            left_alone = waits if waits > 0 and (row.state != "active" or row.failures > 5) else 0.0
            tried = f"{row.failures} failures, not before {waits:.0f} s"
            stale.append(
                (
                    f"link {change.link}, grant {change.grant[:8]} was {change.state}, not fresh ({tried})",
                    left_alone,
                )
            )
        return stale

    def _breaker_is_open(self) -> bool:
        if "breakers" not in self.metadata.tables:
            return False
        with self.engine.connect() as connection:
            asked = sa.text("SELECT count(*) FROM breakers WHERE opened_at IS NOT NULL AND closed_at IS NULL")
            return bool(connection.execute(asked).scalar())

    def rows_are_free(self) -> bool:
        """Whether no transaction holds a lock on any row that matters.

        Asked of the rows themselves: what `innodb_trx` shows is kept as long as somebody looks at it
        more often than every tenth of a second.
        """
        locked = ("spotify_users", "access_tokens", "token_refreshes", "breakers")
        try:
            with self.engine.connect() as connection:
                for table in locked:
                    if table in self.metadata.tables:
                        connection.execute(sa.text(f"SELECT 1 FROM {table} FOR UPDATE NOWAIT"))
        except sa.exc.OperationalError:
            return False
        return True


@contextmanager
def running_world() -> Iterator[World]:
    """Start everything but Backline itself, with a migrated database."""
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
    """How the sandbox names a token where people may read it."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def _logging(metadata: sa.MetaData) -> Iterator[str]:
    """SQL that makes the database copy every change of a row, with what made it, into a table beside it.

    `@harness` is set on our own connections only, so the product's changes have NULL there.
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
            # What a foreign key deletes fires no trigger. The row is locked before its log line is numbered.
            yield (
                f"CREATE TRIGGER {log}_cascade BEFORE DELETE ON spotify_users FOR EACH ROW"
                f" {into} SELECT 'delete', @harness, SYSDATE(6), {', '.join(columns)} FROM {name}"
                " WHERE spotify_user_id = OLD.id FOR UPDATE"
            )


def _shift(table: sa.Table, seconds: float) -> str | None:
    """SQL that moves a table's moments back. Accounts and the logs keep theirs."""
    if table.name == "users" or table.name.endswith("_log"):
        return None
    moments = [column.name for column in table.columns if isinstance(column.type, sa.DateTime)]
    if not moments:
        return None
    sets = (f"{name} = {name} - INTERVAL {int(seconds * 1_000_000)} MICROSECOND" for name in moments)
    return f"UPDATE {table.name} SET {', '.join(sets)}"


def _attempts(rows: Sequence[Any]) -> list[Attempt]:
    """Each attempt as it was last, with the real moments of its first and its last change."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for row in rows:
        if row.log_kind != "delete":
            first.setdefault(row.attempt_id, row)
            last[row.attempt_id] = row
    return [
        Attempt(
            link=row.spotify_user_id,
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
