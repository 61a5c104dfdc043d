"""Fixtures: real servers that are emptied before each test, apps that use them, and clients."""

import base64
import gc
import importlib
import io
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import patch

import pytest
import redis
from argon2 import PasswordHasher
from flask import Flask
from flask.sessions import SessionMixin
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from app.auth import passwords
from app.infra import http_deadline, staleness
from app.infra.redis_keys import PERMISSIONS
from app.web import throttle
from tests.helpers import (
    announcements,
    children,
    hash_slots,
    secret_scanner,
    set_cookie,
    stored_sessions,
    time_limits,
)
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import PASSWORD
from tests.helpers.mail_server import Mailbox, running_mailbox
from tests.helpers.redis_cluster import (
    ClusterDeployment,
    ask_all_nodes,
    direct_client,
    is_cluster,
    running_cluster,
)
from tests.helpers.sandbox_client import (
    CLIENT_ID,
    CLIENT_SECRET,
    REDIRECT_URI,
    SandboxClient,
    running_sandbox,
)
from tests.helpers.scheduling import GroupScheduling
from tests.helpers.servers import (
    ROOT,
    EmptyDatabase,
    Server,
    Unavailable,
    migrate,
    migrate_sqlite,
    mysql_url,
    patient,
    running_mariadb,
    running_redis,
    running_server,
    socket_of,
)
from tests.helpers.upstream import Upstream, running_upstream

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Also registered at the sandbox: the API on any port, and a page of an SPA.
ANY_PORT_REDIRECT_URI = "http://127.0.0.1/api/spotify/authorize"
SPA_REDIRECT_URI = "http://127.0.0.1:5173/callback"
ANY_PORT_SPA_REDIRECT_URI = "http://127.0.0.1/callback"
SPA_ORIGIN = "http://127.0.0.1:5173"

# The settings that do not depend on a server. The developer's .env is not used.
SETTINGS = {
    "APP_ENV": "development",
    "FLASK_SKIP_DOTENV": "1",
    "SECRET_KEY": "a-secret-key-for-tests-only",
    "TOKEN_ENCRYPTION_KEYS": base64.b64encode(bytes(range(32))).decode(),
    "SPOTIFY_CLIENT_ID": CLIENT_ID,
    "SPOTIFY_CLIENT_SECRET": CLIENT_SECRET,
    "SPOTIFY_REDIRECT_URI": REDIRECT_URI,
    "CORS_ORIGINS": SPA_ORIGIN,
    "JWT_SIGNING_KEYS": "hM8bq0O5m2pTx1xkq4-6uYyRrZbEJ4mS7ck3Xx5nVfE",
    "JWT_AUDIENCES": "https://stats.example.com, mobile-push",
    "LOG_LEVEL": "WARNING",
}


class CompiledStatements(dict[Any, Any]):
    """A cache of compiled statements that all apps share, since compiling takes longer than executing.

    SQLAlchemy's keys begin with the dialect, which is another object for each engine.
    """

    def get(self, key: tuple[Any, ...], default: Any = None) -> Any:
        return super().get(self._shared(key), default)

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        super().__setitem__(self._shared(key), compiled)

    def _shared(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        dialect, *rest = key
        version = getattr(dialect, "server_version_info", None)
        return (dialect.name, version, getattr(dialect, "is_mariadb", False), *rest)


COMPILED_STATEMENTS = CompiledStatements()

# What tests run through the product's client, and the product itself never needs.
TEST_COMMANDS = ("+keys", "+flushall", "+flushdb", "+config", "+restore")

CHEAP_HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
CHEAP_HASH = CHEAP_HASHER.hash("unusable")

MakeApp = Callable[..., Flask]

# Hypothesis draws the same examples each time, and has no opinion about the speed of the machine.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
settings.load_profile("tests")

# No test there is about a time limit of the product.
WITHOUT_TIME_LIMITS = {
    ROOT / "tests" / name for name in ("auth", "imports", "operator", "spotify", "user", "web")
}

QUICK_LEAVES_OUT = {"chaos", "mail", "sandbox", "script", "spa", "system"}

# Otherwise, Python prints the warnings of threads between two tests, while pytest captures nothing.
logging.getLogger().addHandler(logging.NullHandler())

# The report of the test, if it failed.
FAILED = pytest.StashKey[pytest.TestReport]()


children.restore_default_signals()
announcements.watch()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="leave out MariaDB, emails, the scripts, the sandbox, and what starts processes or is slow",
    )
    parser.addoption("--redis-cluster", metavar="URL", help="use this Redis Cluster, and delete all its keys")


@pytest.hookimpl(tryfirst=True)  # before pytest reads the markers
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests for which the database does not matter on SQLite only."""
    test = metafunc.definition
    chosen = any("database_url" in mark.args[0] for mark in test.iter_markers("parametrize"))
    if "database_url" in metafunc.fixturenames and test.get_closest_marker("sqlite_only") and not chosen:
        test.add_marker(pytest.mark.parametrize("database_url", ["sqlite"], indirect=True))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run two workers more than there are processors, because many tests wait for other processes."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling:
    return GroupScheduling(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    """In each worker, compile another part of the tests first. The others use the result."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    number = int(worker["workerid"].removeprefix("gw"))
    for file in sorted((ROOT / "tests").rglob("test_*.py"))[number :: worker["workercount"]]:
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        slow = [item for item in items if _is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    # The workers finish at about the same time if the short tests come last.
    items.sort(key=lambda item: not _takes_long(item))


def pytest_collection_finish() -> None:
    """Leave everything loaded so far out of garbage collections, because it stays until the end."""
    gc.collect()
    gc.freeze()


def _takes_long(item: pytest.Item) -> bool:
    is_marked = any(item.get_closest_marker(name) for name in ("processes", "slow"))
    return is_marked or not {"server", "run"}.isdisjoint(getattr(item, "fixturenames", ()))


def _is_slow(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    return (
        _takes_long(item)
        or not QUICK_LEAVES_OUT.isdisjoint(item.nodeid.split("/"))
        or (parameters is not None and parameters.params.get("database_url") == "mariadb")
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the first failure's report, so that leaks are added to it and do not hide it."""
    report = yield
    if report.failed:
        item.stash.setdefault(FAILED, report)
    return report


class ApiClient(FlaskClient):
    """A client that sends the headers of the SPA, and checks every cookie (B6)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.environ_base |= {"HTTP_X_REQUESTED_WITH": "test", "HTTP_ACCEPT": "application/json"}

    def open(self, *args: Any, **kwargs: Any) -> Any:
        response = super().open(*args, **kwargs)
        lines = response.headers.getlist("Set-Cookie")
        # Two only if the cookie with the old name is deleted.
        assert len(lines) <= 1 + any(line.startswith("__Host-session=;") for line in lines), lines
        for line in lines:
            set_cookie.check(line)
        return response

    @contextmanager
    def session_transaction(self, *args: Any, **kwargs: Any) -> Iterator[SessionMixin]:
        """Read and change the stored session, which Flask's own method would not load."""
        with super().session_transaction(*args, **kwargs) as session:
            stored_sessions.load(self.application, self.get_cookie("backline_session"), session)
            yield session


def start(stack: ExitStack, service: AbstractContextManager[Any]) -> Any:
    """Run a service until the stack is closed. If it is not installed, skip the test, or fail in CI."""
    try:
        return stack.enter_context(service)
    except Unavailable as error:
        cannot_run(error)


def cannot_run(error: Unavailable) -> NoReturn:
    """Skip the test, or fail in CI, because something is missing on this machine."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _changes_are_announced() -> Iterator[None]:
    """Fail any test in which the product changes rows that requests remember, and announces nothing."""
    announcements.NOT_ANNOUNCED.clear()
    yield
    assert announcements.NOT_ANNOUNCED == []


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test() -> Iterator[None]:
    yield
    children.kill_children()


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of a Redis server, which is empty at the beginning of each test. Everything is allowed.

    With `--redis-cluster`, it is that of the cluster.
    """
    if cluster := pytestconfig.getoption("redis_cluster"):
        yield cluster
        return
    with ExitStack() as stack:
        url = start(stack, running_redis())
        with redis.Redis.from_url(url) as client:
            client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *PERMISSIONS.split(), *TEST_COMMANDS)
        yield url


def restricted(redis_url: str) -> str:
    """Return the URL of the same Redis for a user who may use only the keys that the product declares."""
    return redis_url.replace("unix://", "unix://app:pw@")


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterDeployment]:
    """A Redis Cluster of three nodes."""
    with ExitStack() as stack:
        yield start(stack, running_cluster(tmp_path_factory.mktemp("redis-cluster")))


@pytest.fixture(scope="session")
def _sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return migrate_sqlite(tmp_path_factory.mktemp("sqlite") / "backline.sqlite3", SETTINGS)


@pytest.fixture(scope="session")
def _mariadb_url() -> Iterator[str]:
    with ExitStack() as stack:
        url = start(stack, running_mariadb())
        migrate({**SETTINGS, "DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0"})
        yield url


@pytest.fixture(scope="session", params=["sqlite", "mariadb"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database, empty at the beginning of each test. Tests run on each kind."""
    url: str = request.getfixturevalue(f"_{request.param}_url")
    return url


@pytest.fixture(scope="session")
def sandbox() -> Iterator[SandboxClient]:
    """The sandbox Spotify, which is reset at the beginning of each test."""
    registered = [REDIRECT_URI, ANY_PORT_REDIRECT_URI, SPA_REDIRECT_URI, ANY_PORT_SPA_REDIRECT_URI]
    with running_sandbox(registered) as client:
        yield client


@pytest.fixture(scope="session")
def _empty_database(database_url: str) -> Iterator[EmptyDatabase]:
    empty = EmptyDatabase(database_url)
    yield empty
    empty.close()


@pytest.fixture(scope="session")
def _redis(redis_url: str) -> Iterator[redis.Redis]:
    with direct_client(redis_url) as client:
        announcements.STORES.append(client)
        yield client
        announcements.STORES.remove(client)


@pytest.fixture(scope="session")
def _redis_commands(redis_url: str) -> Iterator[secret_scanner.RedisCommands]:
    commands = secret_scanner.RedisCommands(redis_url)
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def _columns(database_url: str) -> Iterator[secret_scanner.Columns]:
    columns = secret_scanner.Columns(database_url)
    yield columns
    columns.close()


@pytest.fixture(scope="session", autouse=True)
def _recording() -> Iterator[None]:
    secret_scanner.SCANNER.learn("a password", PASSWORD)
    secret_scanner.SCANNER.learn_settings(SETTINGS)
    with secret_scanner.recording():
        yield
    # The output of servers that run until the end.
    if found := secret_scanner.SCANNER.scan():
        pytest.fail(_describe_leaks(found), pytrace=False)


@pytest.fixture(autouse=True)
def _hash_slots(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that sends a command which a Redis Cluster would reject: its keys are in several slots."""
    yield
    if "redis_url" in request.fixturenames and not request.config.getoption("redis_cluster"):
        commands = request.getfixturevalue("_redis_commands")
        lines, commands.lines = commands.lines, []
        if found := [*hash_slots.split_commands(lines)]:
            pytest.fail("\n".join(["Keys in several slots of a Redis Cluster:", *found]), pytrace=False)


@pytest.fixture(autouse=True)
def scanner(request: pytest.FixtureRequest, _hash_slots: None) -> Iterator[secret_scanner.SecretScanner]:
    """Fail a test in which the product sends, logs, or stores a secret where it must not."""
    read = {"redis_url": "_redis_commands", "database_url": "_columns"}
    if request.config.getoption("redis_cluster"):
        del read["redis_url"]  # no single server shows all commands
    used = set(request.fixturenames)
    secret_scanner.SCANNER.sources = [
        request.getfixturevalue(source) for place, source in read.items() if place in used
    ]
    yield secret_scanner.SCANNER
    found = secret_scanner.SCANNER.scan()
    secret_scanner.SCANNER.sources = []
    if not found:
        return
    if failed := request.node.stash.get(FAILED, None):
        failed.sections.append(("leaks", _describe_leaks(found)))  # below the failure, which may be the cause
    else:
        pytest.fail(_describe_leaks(found), pytrace=False)


def _describe_leaks(found: list[secret_scanner.Leak]) -> str:
    return "\n".join(["Secrets where none belong (tests/helpers/secret_scanner.py):", *map(str, found)])


@pytest.fixture(autouse=True)
def _empty_servers(request: pytest.FixtureRequest, scanner: secret_scanner.SecretScanner) -> None:
    """Empty the servers that the test uses."""
    used = set(request.fixturenames)
    if "sandbox" in used:
        request.getfixturevalue("sandbox").reset()
    if "redis_url" in used:
        request.getfixturevalue("_redis").flushall()
    if "database_url" in used:
        request.getfixturevalue("_empty_database")()


@pytest.fixture(scope="session", autouse=True)
def _long_waits() -> Iterator[None]:
    """Make the product wait for longer than a busy machine takes.

    It waits for a processor, between wrong passwords, and until it takes an idle connection for a broken one.
    """
    with (
        patch.object(passwords.Passwords, "MAX_WAIT_SECONDS", 60.0),
        patch.object(throttle, "FIRST_WAIT_SECONDS", 200),
        patch.object(staleness, "IDLE_SECONDS", 600.0),
        patch.object(http_deadline, "IDLE_SECONDS", 600.0),
    ):
        yield


@pytest.fixture(autouse=True)
def _long_time_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not WITHOUT_TIME_LIMITS.isdisjoint(request.path.parents):
        time_limits.lengthen(monkeypatch)


@pytest.fixture(autouse=True)
def _cheap_password_hashes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hash passwords with a thousandth of the cost, except in tests about the cost."""
    if request.node.get_closest_marker("full_hashing_cost"):
        yield
        return
    with patch.multiple(passwords, _hasher=CHEAP_HASHER, UNUSABLE_HASH=CHEAP_HASH):
        yield


@pytest.fixture
def env(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, sandbox: SandboxClient
) -> dict[str, str]:
    """The environment of an app that uses the tests' servers, with the settings of the test's markers.

    If the test uses the fixture of a proxy or fake server, the app uses that server too.
    """
    env = {**SETTINGS, **_addresses(database_url, redis_url, sandbox)}
    if "upstream" in request.fixturenames:
        env["SPOTIFY_API_URL"] = request.getfixturevalue("upstream").url
    if "redis_proxy" in request.fixturenames:
        env["REDIS_URL"] = f"redis://127.0.0.1:{request.getfixturevalue('redis_proxy').port}/0"
    if "mysql_proxy" in request.fixturenames:
        env["DATABASE_URL"] = mysql_url(request.getfixturevalue("mysql_proxy").port)
    if "mailbox" in request.fixturenames:
        env["MAIL_URL"] = request.getfixturevalue("_mail_server")[1]
    for marker in reversed(list(request.node.iter_markers("settings"))):  # the closest last
        env |= marker.kwargs
    return env


def _addresses(database_url: str, redis_url: str, sandbox: SandboxClient) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": restricted(redis_url),
        "SPOTIFY_ACCOUNTS_URL": sandbox.accounts_url,
        "SPOTIFY_API_URL": sandbox.api_url,
    }


@pytest.fixture(scope="session")
def shared_env(database_url: str, redis_url: str, sandbox: SandboxClient) -> dict[str, str]:
    """The environment of a server that many tests share."""
    settings = {name: value for name, value in SETTINGS.items() if name != "SPOTIFY_REDIRECT_URI"}
    # Nothing listens there: the server must not deliver emails of other tests in the same database.
    no_mail = {"MAIL_URL": "smtp://127.0.0.1:1"}
    return {**settings, **_addresses(database_url, redis_url, sandbox), **no_mail}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A fake Web API. Tokens still come from the sandbox."""
    with running_upstream() as running:
        yield running


@pytest.fixture
def redis_proxy(redis_url: str) -> Iterator[FaultProxy]:
    """A proxy between the app and Redis."""
    if is_cluster(redis_url):
        pytest.skip("a proxy is in front of one server only")
    with FaultProxy(redis_url.removeprefix("unix://")) as proxy:
        yield proxy


@pytest.fixture
def mysql_proxy(database_url: str) -> Iterator[FaultProxy]:
    """A proxy between the app and MariaDB, for tests that run on MariaDB only."""
    with FaultProxy(socket_of(database_url)) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def chromium() -> "Iterator[Browser]":
    """A browser. Each test opens a new context, which has no cookies."""
    from tests.helpers.browser import running_chromium  # loading it takes as long as many tests

    with ExitStack() as stack:
        yield start(stack, running_chromium())


@pytest.fixture
def _mail_server() -> Iterator[tuple[Mailbox, str]]:
    with running_mailbox() as server:
        yield server


@pytest.fixture
def mailbox(_mail_server: tuple[Mailbox, str]) -> Mailbox:
    """The mailbox of the mail server that the app uses."""
    return _mail_server[0]


@pytest.fixture
def make_app(env: dict[str, str]) -> Iterator[MakeApp]:
    """Make applications in this process: `make_app(NAME="value")`, with further settings.

    They share nothing but the servers, like separate processes.
    """
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running_app({**env, **settings}))


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An application with the settings of the test's markers."""
    return make_app()


@pytest.fixture
def another_worker(make_app: MakeApp) -> Flask:
    """Another application with the same settings, like another process."""
    return make_app()


@contextmanager
def running_app(env: dict[str, str]) -> Iterator[Flask]:
    """Run an application with these settings in this process."""
    from app import create_app
    from app.infra.database import db
    from config import Config

    secret_scanner.SCANNER.learn_settings(env)
    application = create_app(Config.from_env(env))
    application.test_client_class = ApiClient
    with application.app_context():
        db.engine.update_execution_options(compiled_cache=COMPILED_STATEMENTS)
    mailer = application.extensions["backline"].mailer
    if mailer.to_console:
        mailer.transport.stream = io.StringIO()  # pytest shows what a thread prints between two tests
    store = application.extensions["backline"].redis
    if not env["REDIS_URL"].startswith("redis+sentinel:"):  # whose tests pause servers
        patient(store)
    if is_cluster(env["REDIS_URL"]):
        ask_all_nodes(store)
    yield application
    application.extensions["backline"].tokens.close()
    mailer.close()
    with application.app_context():
        db.engine.dispose()
    application.extensions["backline"].redis.close()


@pytest.fixture
def new_client(app: Flask) -> Callable[[], FlaskClient]:
    """Makes clients, each with its own cookies."""
    return app.test_client


@pytest.fixture
def client(new_client: Callable[[], FlaskClient]) -> FlaskClient:
    """A client without cookies."""
    return new_client()


@pytest.fixture
def server(env: dict[str, str]) -> Callable[..., AbstractContextManager[Server]]:
    """Starts the app under gunicorn: `with server(workers=2, threads=8, SETTING="value") as api:`.

    The redirect URI is at this server.
    """

    def start_server(
        *, workers: int = 2, threads: int = 8, **settings: str
    ) -> AbstractContextManager[Server]:
        shared = {name: value for name, value in env.items() if name != "SPOTIFY_REDIRECT_URI"}
        secret_scanner.SCANNER.learn_settings({**shared, **settings})
        return running_server({**shared, **settings}, workers=workers, threads=threads)

    return start_server
