"""The API while Redis or MySQL refuses connections, stalls, restarts, or fails in the middle of a request."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from typing import Any, NamedTuple

import pytest
import redis
import requests
import sqlalchemy as sa
from flask import Flask, Response
from flask.testing import FlaskClient
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.infra import mysql
from app.infra.database import db as database
from app.infra.database import read_db_now, run_in_transaction, writing
from app.models import User
from app.web.access import public
from config import Config
from tests.conftest import SPA_ORIGIN, running_app, start
from tests.helpers.deployment import Deployment
from tests.helpers.flows import PASSWORD
from tests.helpers.processes import ApiServer
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.servers import LONG, ROOT, eventually

pytestmark = pytest.mark.processes

# A request waits a few seconds for a server. Without a limit, or one after the other, it would be a minute.
MOST_SECONDS = 25.0
HEADERS = {"X-Requested-With": "test", "Accept": "application/json"}


@pytest.fixture(scope="module")
def _deployment(sandbox: SandboxClient) -> Iterator[Deployment]:
    with ExitStack() as stack:
        running = start(stack, Deployment.running(sandbox))
        running.start(servers=1, schedulers=0)
        yield running


@pytest.fixture
def deployment(_deployment: Deployment) -> Iterator[Deployment]:
    """One server with one worker, which outlives everything that the tests do."""
    [server] = _deployment.servers
    worker = server.worker_pid
    _deployment.reset()
    yield _deployment
    _deployment.reset()
    assert server.worker_pid == worker, "the worker was replaced"


@pytest.fixture
def api(deployment: Deployment) -> ApiServer:
    """The server, with its proxies to MariaDB and Redis."""
    return deployment.servers[0]


@pytest.fixture
def app(api: ApiServer) -> Iterator[Flask]:
    """The app in this process, on the same servers through the same proxies."""
    with running_app(api.settings) as application:
        yield application


def call(
    api: ApiServer, method: str, path: str, *, cookies: dict[str, str] | None = None, **sent: Any
) -> requests.Response:
    headers = HEADERS | sent.pop("headers", {})
    with requests.Session() as http:
        http.trust_env = False
        return http.request(
            method,
            api.url + path,
            cookies=cookies,
            headers=headers,
            timeout=LONG,
            allow_redirects=False,
            **sent,
        )


def account(name: str = "ada") -> dict[str, str]:
    return {"username": name, "email": f"{name}@example.com", "password": PASSWORD}


def sign_up(api: ApiServer, name: str = "ada") -> dict[str, str]:
    """Register. Return the cookies."""
    response = call(api, "POST", "/api/register", json=account(name))
    assert response.status_code == 201, response.text
    return response.cookies.get_dict()


def sign_in(api: ApiServer) -> requests.Response:
    return call(api, "POST", "/api/login", json={"login": "ada", "password": PASSWORD})


def authorize(api: ApiServer, cookies: dict[str, str], **options: Any) -> requests.Response:
    return call(api, "GET", "/api/spotify/authorize", cookies=cookies, **options)


@pytest.fixture
def cookies(api: ApiServer, sandbox: SandboxClient) -> dict[str, str]:
    """The cookies of a user who is signed in and connected."""
    cookies = sign_up(api)
    response = authorize(api, cookies)
    callback = sandbox.consent(response.json()["authorize_url"], person="mira_t_42")
    response = authorize(api, cookies, params=callback_query(callback))
    assert response.json()["status"] == "connected", response.text
    return cookies


def users(deployment: Deployment, name: str = "ada") -> int:
    [(count,)] = deployment.sql("SELECT COUNT(*) FROM users WHERE username = :name", name=name)
    return int(count)


def check_unavailable(response: requests.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert int(response.headers["Retry-After"]) > 0
    assert response.json()["type"] == "/problems/service-unavailable"
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


def check_recovered(api: ApiServer, cookies: dict[str, str]) -> None:
    """Check that every call succeeds soon, and from then on."""
    paths = ["/api/session", "/api/user", "/api/spotify", "/api/spotify/token"] * 4

    def statuses() -> set[int]:
        with ThreadPoolExecutor(8) as pool:
            return {response.status_code for response in pool.map(send, paths)}

    def send(path: str) -> requests.Response:
        return call(api, "GET", path, cookies=cookies)

    # The first burst replaces all connections. On a busy machine, one may time out.
    eventually(lambda: statuses() == statuses() == {200})


def kill_connections(deployment: Deployment, having: str = "TRUE") -> int:
    """KILL the app's connections to MariaDB. Return how many there were."""
    app_only = "user = 'root' AND id != CONNECTION_ID() AND command != 'Daemon'"
    ids = deployment.sql(f"SELECT id FROM information_schema.processlist WHERE {app_only} AND ({having})")
    for (connection,) in ids:
        deployment.sql(f"KILL {int(connection)}")
    return len(ids)


# --- every route ---------------------------------------------------------------------------------

# Valid input, so that each route gets as far as possible.
FIELDS = {
    "login": "ada",
    "username": "grace",
    "email": "grace@example.com",
    "password": PASSWORD,
    "current_password": PASSWORD,
    "new_password": "quite another sentence",
}
NEEDS_NOTHING = re.compile(
    r"/livez|/metrics|/operator.*|/api/docs.*|/api/openapi\.json|/\.well-known/jwks\.json"
)
NEEDS_REDIS_ONLY = {("POST", "/api/logout")}
CLIENT_ERRORS = {400, 403, 404, 405, 413, 415, 422}


class Call(NamedTuple):
    method: str
    path: str
    body: dict[str, str]


def every_call(app: Flask) -> list[Call]:
    """List each method of each route. Signing out is last, because it affects the others."""
    document: dict[str, Any] = app.test_client().get("/api/openapi.json").get_json()
    found = []
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<any\('([^']+)'[^>]*>", r"\1", rule.rule)
        path = re.sub(r"<int:[^>]*>", "1", path)
        path = re.sub(r"<[^>]*>", "x", path)
        template = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted(rule.methods or ()):
            operation = document["paths"].get(template, {}).get(method.lower(), {})
            found.append(
                Call(method, path, {name: FIELDS.get(name, "x") for name in _fields(document, operation)})
            )
    return sorted(found, key=lambda one: ((one.method, one.path) in NEEDS_REDIS_ONLY, one.path, one.method))


def _fields(document: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return list(schema.get("properties", {}))


def complaint(one: Call, response: requests.Response, *, signed_in: bool, redis_is_there: bool) -> str | None:
    """Describe what is wrong with a response during an outage; None if nothing is."""
    status, slug = (
        response.status_code,
        json.loads(response.text).get("type", "") if response.text[:1] == "{" else "",
    )
    if one.path == "/readyz" and one.method != "OPTIONS":
        return None if status in (200, 503) else "is not a probe's response"  # 200 for the first seconds
    if NEEDS_NOTHING.fullmatch(one.path) or (one.method == "OPTIONS" and not signed_in):
        return None if status == 200 else "needs no dependency"  # browsers send no cookie with OPTIONS
    if status == 503:
        headers = {"Retry-After", "X-Request-ID"} - set(response.headers)
        is_problem = response.headers["Content-Type"] == "application/problem+json"
        return f"lacks {headers}" if headers else None if is_problem else "is no problem document"
    if status >= 500:
        return "is an internal error"
    is_without_token = status == 401 and one.path.startswith("/v1/")  # no cookie is read there
    if status in CLIENT_ERRORS or is_without_token:
        return None
    if redis_is_there and (one.method, one.path) in NEEDS_REDIS_ONLY:
        return None
    if signed_in and one.method != "OPTIONS":
        return "treats a signed-in user as a visitor, or succeeds without what it needs"
    if status == 401:
        return None if slug in ("", "/problems/not-signed-in") else "cannot be known"
    if one.method in ("GET", "HEAD", "OPTIONS") or status == 409:
        return None
    # A visitor has nothing to sign out of and nothing to disconnect.
    return None if status == 204 and one.path in ("/api/logout", "/api/spotify") else "cannot have been done"


def check_every_route(api: ApiServer, app: Flask, cookies: dict[str, str], *, redis_is_there: bool) -> None:
    calls = every_call(app)

    def send(case: tuple[Call, dict[str, str]]) -> str | None:
        one, jar = case
        began = time.monotonic()
        response = call(api, one.method, one.path, cookies=jar, json=one.body or None)
        took = time.monotonic() - began
        wrong = complaint(one, response, signed_in=bool(jar), redis_is_there=redis_is_there)
        if took > MOST_SECONDS:
            wrong = f"took {took:.1f} s"
        return (
            wrong
            and f"{one.method} {one.path} {'signed in' if jar else 'a visitor'}: {wrong}: {response.text}"
        )

    last = [one for one in calls if (one.method, one.path) in NEEDS_REDIS_ONLY]
    with ThreadPoolExecutor(8) as pool:
        cases = list(product([one for one in calls if one not in last], [cookies, {}]))
        complaints = [*pool.map(send, cases), *map(send, product(last, [{}]))]
    assert [wrong for wrong in complaints if wrong] == []


@pytest.mark.requirement("L2")
@pytest.mark.parametrize("dependency", ["redis", "database"])
@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_every_route_is_503_in_time_during_an_outage(
    api: ApiServer, app: Flask, cookies: dict[str, str], dependency: str, fault: str
) -> None:
    redis_is_there = dependency != "redis"
    getattr(getattr(api, dependency), fault)()
    check_every_route(api, app, cookies, redis_is_there=redis_is_there)
    if not redis_is_there:
        check_unavailable(call(api, "POST", "/api/logout", cookies=cookies))

    getattr(api, dependency).restore()
    check_recovered(api, cookies)
    assert re.findall(r".*Traceback.*", api.log) == []


@pytest.mark.parametrize("dependency", ["redis", "database"])
def test_browser_returns_to_the_app_with_the_reason_during_an_outage(
    api: ApiServer, cookies: dict[str, str], dependency: str
) -> None:
    getattr(api, dependency).refuse()

    response = authorize(api, cookies, headers={"Accept": "text/html"})

    assert response.status_code == 303
    assert response.headers["Location"].endswith("spotify=error-service-unavailable")


# --- the servers themselves ----------------------------------------------------------------------


def test_redis_is_used_again_after_a_restart(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    deployment.redis.kill()
    check_unavailable(call(api, "GET", "/api/user", cookies=cookies))

    deployment.redis.start()

    # Redis lost the sessions, so users sign in again, and are still connected.
    again = eventually(lambda: sign_in(api))
    assert again.status_code == 200, again.text
    check_recovered(api, again.cookies.get_dict())
    assert call(api, "GET", "/api/user", cookies=cookies).status_code == 401


@pytest.mark.requirement("L2")
def test_paused_redis_does_not_block_requests(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    deployment.redis.pause()
    responses = timed(lambda: call(api, "GET", "/api/user", cookies=cookies), 8)
    alive = timed(lambda: call(api, "GET", "/livez"), 1)
    deployment.redis.resume()

    for response, seconds in responses:
        check_unavailable(response)
        assert seconds < MOST_SECONDS
    assert alive[0][0].status_code == 200
    check_recovered(api, cookies)


def test_slow_redis_only_costs_time(api: ApiServer, cookies: dict[str, str]) -> None:
    api.redis.latency(0.05)

    def statuses() -> set[int]:
        four = timed(lambda: call(api, "GET", "/api/spotify/token", cookies=cookies), 4)
        return {response.status_code for response, _ in four}

    # On a busy machine, a reply may take longer than the app waits.
    eventually(lambda: statuses() == {200})


def test_full_redis_rejects_new_sessions_and_serves_existing_ones(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    deployment.redis.client.config_set("maxmemory", 1)

    check_unavailable(call(api, "POST", "/api/register", json=account("grace")))
    check_unavailable(sign_in(api))
    # This one is rejected only when its session is saved. Its response depends on the cookie nevertheless.
    rejected = call(api, "GET", "/api/spotify/authorize")
    check_unavailable(rejected)
    assert "Cookie" in rejected.headers["Vary"]
    served = [call(api, "GET", path, cookies=cookies) for path in ("/api/user", "/api/spotify/token")]
    assert [response.status_code for response in served] == [200, 200]
    assert users(deployment, "grace") == 0

    deployment.redis.client.config_set("maxmemory", 0)
    assert call(api, "POST", "/api/register", json=account("grace")).status_code == 201


def test_redis_counts_as_unavailable_while_it_is_a_replica(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    deployment.redis.client.replicaof("127.0.0.1", "1")

    check_unavailable(call(api, "GET", "/api/user", cookies=cookies))
    check_unavailable(sign_in(api))

    deployment.redis.client.replicaof("NO", "ONE")
    check_recovered(api, cookies)


def test_mysql_is_used_again_after_a_restart(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    deployment.database.kill()
    for response, seconds in timed(lambda: call(api, "GET", "/api/user", cookies=cookies), 16):
        check_unavailable(response)
        assert seconds < MOST_SECONDS
    eventually(lambda: call(api, "GET", "/readyz").status_code == 503)

    deployment.database.start()

    check_recovered(api, cookies)
    eventually(lambda: call(api, "GET", "/readyz").status_code == 200)


@pytest.mark.requirement("L2")
def test_paused_mysql_does_not_block_requests_for_long(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    deployment.database.pause()
    # Eight times as many callers as threads: they must not queue behind each other's timeouts.
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(timed, lambda: call(api, "GET", "/api/user", cookies=cookies), 64)
        responses = waiting.result()
    eventually(lambda: call(api, "GET", "/readyz").status_code == 503)
    deployment.database.resume()

    for response, seconds in responses:
        check_unavailable(response)
        assert seconds < MOST_SECONDS
    check_recovered(api, cookies)


@pytest.mark.requirement("L2")
def test_stalled_statement_times_out(api: ApiServer, cookies: dict[str, str]) -> None:
    api.database.hold("down", b"spotify_users")
    [(response, seconds)] = timed(lambda: call(api, "GET", "/api/spotify", cookies=cookies), 1)
    api.database.release()

    check_unavailable(response)
    assert seconds < MOST_SECONDS
    check_recovered(api, cookies)


@pytest.mark.requirement("L2")
@pytest.mark.parametrize("on", ["code", "refresh", "api"])
def test_no_transaction_is_open_during_a_call_to_spotify(
    api: ApiServer, deployment: Deployment, sandbox: SandboxClient, cookies: dict[str, str], on: str
) -> None:
    path, parameters = "/api/spotify/v1/me/player", {}
    if on == "refresh":
        deployment.sql("UPDATE access_tokens SET expires_at = UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE")
    if on == "code":
        path, cookies = "/api/spotify/authorize", sign_up(api, "grace")
        consent = sandbox.consent(authorize(api, cookies).json()["authorize_url"], person="jonas.k")
        parameters = callback_query(consent)
    sandbox.fault(on=on, kind="park")
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(call, api, "GET", path, cookies=cookies, params=parameters)
        sandbox.wait_for_held(1)
        eventually(lambda: open_transactions(deployment) == 0)
        sandbox.release()

        assert pending.result().status_code in (200, 204)


def open_transactions(deployment: Deployment) -> int:
    time.sleep(0.2)  # the server remembers the list for 0.1 s after the last query
    [(count,)] = deployment.sql("SELECT COUNT(*) FROM information_schema.innodb_trx")
    return int(count)


def test_stalled_idle_connection_times_out_sooner_than_a_statement(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = mysql.engine_options

    def patient(config: Config) -> dict[str, Any]:
        options = original(config)
        options["connect_args"]["read_timeout"] = 2 * int(LONG)
        return options

    monkeypatch.setattr(mysql, "engine_options", patient)
    with running_app(api.settings) as app, app.app_context():
        read_db_now()
        api.database.blackhole()
        began = time.monotonic()
        with pytest.raises(OperationalError):
            read_db_now()

        # One second for the ping, and two for the new connection.
        assert time.monotonic() - began < LONG


def timed(send: Callable[[], requests.Response], count: int) -> list[tuple[requests.Response, float]]:
    """Make so many calls at once. Return the responses, and how long each took."""

    def one(_: int) -> tuple[requests.Response, float]:
        began = time.monotonic()
        return send(), time.monotonic() - began

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


# --- connections that break ----------------------------------------------------------------------


def test_idle_connection_that_was_killed_is_replaced(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    def read() -> requests.Response:
        return call(api, "GET", "/api/user/tokens", cookies=cookies)  # which no process remembers

    # After some seconds, idle connections are closed.
    eventually(lambda: timed(read, 8) and kill_connections(deployment))

    assert [response.status_code for response, _ in timed(read, 16)] == [200] * 16


def test_mysql_restart_between_requests_goes_unnoticed(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    os.kill(deployment.database.pid, signal.SIGTERM)
    eventually(lambda: not deployment.database.is_running)
    deployment.database.kill()
    deployment.database.start()

    assert call(api, "GET", "/api/user", cookies=cookies).status_code == 200


def test_connection_killed_in_a_transaction_leaves_no_partial_write(
    api: ApiServer, deployment: Deployment
) -> None:
    api.database.hold("up", b"COMMIT", since=b"INSERT INTO users")
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(call, api, "POST", "/api/register", json=account())
        api.database.wait_until_held()
        in_transaction = "id IN (SELECT trx_mysql_thread_id FROM information_schema.innodb_trx)"
        eventually(lambda: kill_connections(deployment, in_transaction))
        api.database.release()
        response = pending.result()

    # Complete, because it was retried.
    assert response.status_code == 201, response.text
    assert users(deployment) == 1
    assert call(api, "GET", "/api/user", cookies=response.cookies.get_dict()).status_code == 200


# --- conflicting transactions --------------------------------------------------------------------


@pytest.fixture
def pair(deployment: Deployment) -> None:
    for name in ("ada", "grace"):
        deployment.sql(
            "INSERT INTO users (username, email, password_hash, created_at, updated_at) "
            "VALUES (:name, :name, 'x', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
            name=name,
        )


def change_both(app: Flask, *, retry: bool) -> Callable[[str, str], tuple[int, str | None]]:
    """Add a route that changes two rows in turn. The first two calls meet in the middle."""
    barrier = threading.Barrier(2)
    met: set[str] = set()

    @app.post("/api/both/<first>/<second>")
    @public
    def both(first: str, second: str) -> Response:
        def work(db: Session) -> None:
            for name in (first, second):
                change = sa.update(User).where(User.username == name)
                db.execute(change.values(password_hash=User.password_hash + first[0]))
                if name == first and first not in met:
                    met.add(first)
                    barrier.wait(LONG)

        if retry:
            run_in_transaction(work)
        else:
            with writing() as db:
                work(db)
        return Response(status=204)

    def send(first: str, second: str) -> tuple[int, str | None]:
        response = app.test_client().post(f"/api/both/{first}/{second}", headers=HEADERS)
        return response.status_code, response.headers.get("Retry-After")

    return send


def hashes(deployment: Deployment) -> list[str]:
    return [value for (value,) in deployment.sql("SELECT password_hash FROM users ORDER BY username")]


@pytest.mark.usefixtures("pair")
def test_deadlock_victim_is_retried(deployment: Deployment, app: Flask) -> None:
    send = change_both(app, retry=True)
    with ThreadPoolExecutor(2) as pool:
        responses = [pool.submit(send, *names) for names in (("ada", "grace"), ("grace", "ada"))]

    assert [response.result() for response in responses] == [(204, None)] * 2
    assert [sorted(value) for value in hashes(deployment)] == [["a", "g", "x"]] * 2


@pytest.mark.usefixtures("pair")
def test_deadlock_victim_without_retries_leaves_no_partial_write(deployment: Deployment, app: Flask) -> None:
    send = change_both(app, retry=False)
    with ThreadPoolExecutor(2) as pool:
        responses = [pool.submit(send, *names) for names in (("ada", "grace"), ("grace", "ada"))]

    assert sorted(response.result() for response in responses) == [(204, None), (503, "5")]
    assert hashes(deployment)[0] == hashes(deployment)[1]
    assert send("ada", "grace")[0] == 204


def test_lock_wait_times_out_and_leaves_nothing_behind(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    with deployment.engine.connect() as other:
        other.execute(sa.text("SELECT id FROM spotify_users FOR UPDATE"))
        [(response, seconds)] = timed(lambda: call(api, "DELETE", "/api/spotify", cookies=cookies), 1)
        other.rollback()

    check_unavailable(response)
    assert seconds < MOST_SECONDS
    check_recovered(api, cookies)
    assert call(api, "DELETE", "/api/spotify", cookies=cookies).status_code == 204


@pytest.mark.usefixtures("pair")
def test_writes_before_a_lock_timeout_are_rolled_back(deployment: Deployment, app: Flask) -> None:
    """MySQL rolls back only one statement (1205), so a commit after it would store half of the changes."""

    def work(db: Session) -> None:
        db.execute(sa.text("SET SESSION innodb_lock_wait_timeout = 1"))
        db.execute(sa.update(User).where(User.username == "ada").values(password_hash="half"))
        db.execute(sa.update(User).where(User.username == "grace").values(password_hash="half"))

    with deployment.engine.connect() as other, app.app_context():
        other.execute(sa.text("SELECT id FROM users WHERE username = 'grace' FOR UPDATE"))
        with pytest.raises(OperationalError, match="1205"):
            run_in_transaction(work, retries=0)
        other.rollback()
        database.engine.dispose()
        assert hashes(deployment) == ["x", "x"]


# --- interrupted requests ------------------------------------------------------------------------

WRITES_ACCOUNT = b"INSERT INTO users"


def test_registration_with_an_unacknowledged_commit_is_looked_up(
    api: ApiServer, deployment: Deployment
) -> None:
    dropped = api.database.dropped
    api.database.drop_reply(b"COMMIT", since=WRITES_ACCOUNT)

    response = call(api, "POST", "/api/register", json=account())

    assert api.database.dropped > dropped
    assert response.status_code == 201, response.text
    assert users(deployment) == 1
    assert call(api, "GET", "/api/user", cookies=response.cookies.get_dict()).json()["username"] == "ada"
    assert call(api, "POST", "/api/register", json=account()).status_code == 409


@pytest.mark.requirement("I3")
@pytest.mark.parametrize("committed", [False, True])
def test_client_can_tell_whether_an_interrupted_registration_succeeded(
    api: ApiServer, deployment: Deployment, committed: bool
) -> None:
    api.database.hold("up", b"COMMIT", since=WRITES_ACCOUNT)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(call, api, "POST", "/api/register", json=account())
        api.database.wait_until_held()
        if committed:
            api.database.hold("down", b"")  # forwards the COMMIT, and holds the reply
            eventually(lambda: users(deployment) == 1)
        api.database.refuse()
        response = pending.result()
    check_unavailable(response)
    assert "Set-Cookie" not in response.headers
    api.database.restore()

    again = call(api, "POST", "/api/register", json=account())
    assert (again.status_code, users(deployment)) == (409 if committed else 201, 1)
    signed_in = sign_in(api)
    assert signed_in.status_code == 200


def test_sign_in_that_loses_a_reply_of_mysql_reads_again(api: ApiServer, deployment: Deployment) -> None:
    sign_up(api)
    # Sending the email reads the user as well.
    eventually(lambda: deployment.sql("SELECT id FROM outgoing_mails") == [])

    def reads_again() -> bool:
        opened, dropped = api.database.opened, api.database.dropped
        api.database.drop_reply(b"FROM users")
        response = sign_in(api)
        assert api.database.dropped == dropped + 1
        # A read is repeated only on a pooled connection. The thread that sends emails may have the only one.
        assert response.status_code == 200 or api.database.opened > opened, response.text
        return response.status_code == 200

    eventually(reads_again)


@pytest.mark.parametrize("lost", [b"SET", b"ZADD"])
def test_sign_in_whose_session_cannot_be_stored_sets_no_cookie(api: ApiServer, lost: bytes) -> None:
    sign_up(api)
    api.redis.drop_reply(b"\r\n" + lost + b"\r\n")

    first = sign_in(api)
    again = sign_in(api)

    check_unavailable(first)
    assert "Set-Cookie" not in first.headers
    assert again.status_code == 200


def test_sign_out_without_a_reply_from_redis_can_be_repeated(
    api: ApiServer, deployment: Deployment, cookies: dict[str, str]
) -> None:
    api.redis.drop_reply(b"\r\nDEL\r\n")

    headers = {"Origin": SPA_ORIGIN}
    first = call(api, "POST", "/api/logout", cookies=cookies, headers=headers)
    again = call(api, "POST", "/api/logout", cookies=cookies)

    check_unavailable(first)
    assert first.headers["Access-Control-Allow-Origin"] == SPA_ORIGIN  # the app can read the response
    assert again.status_code == 204
    assert call(api, "GET", "/api/user", cookies=cookies).status_code == 401
    assert deployment.redis.client.keys("session:*") == []


def test_connection_with_an_unacknowledged_commit_exists(
    api: ApiServer, deployment: Deployment, sandbox: SandboxClient
) -> None:
    cookies = sign_up(api)
    first = authorize(api, cookies)
    parameters = callback_query(sandbox.consent(first.json()["authorize_url"], person="mira_t_42"))
    api.database.drop_reply(b"COMMIT", since=b"INSERT INTO spotify_users")

    first = authorize(api, cookies, params=parameters)
    again = authorize(api, cookies, params=parameters)

    assert first.status_code in (200, 503), first.text
    assert (again.status_code, again.json()["status"]) == (200, "connected")
    assert len(deployment.sql("SELECT id FROM spotify_users")) == 1


def test_connection_lost_before_its_commit_leaves_nothing(
    api: ApiServer, deployment: Deployment, sandbox: SandboxClient
) -> None:
    cookies = sign_up(api)
    first = authorize(api, cookies)
    parameters = callback_query(sandbox.consent(first.json()["authorize_url"], person="mira_t_42"))
    api.database.hold("up", b"COMMIT", since=b"INSERT INTO spotify_users")
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(call, api, "GET", "/api/spotify/authorize", cookies=cookies, params=parameters)
        api.database.wait_until_held()
        api.database.refuse()  # otherwise, the transaction would be repeated
        api.database.release()
        response = pending.result()
    api.database.restore()

    check_unavailable(response)
    assert deployment.sql("SELECT id FROM spotify_users") == []
    # The state is consumed; the person has to start again.
    again = authorize(api, cookies, params=parameters)
    assert again.status_code == 400
    fresh = authorize(api, cookies).json()
    parameters = callback_query(sandbox.consent(fresh["authorize_url"], person="mira_t_42"))
    done = authorize(api, cookies, params=parameters)
    assert done.json()["status"] == "connected"


@pytest.mark.parametrize("dependency", ["database", "redis"])
def test_callback_during_an_outage_can_be_repeated(
    api: ApiServer, sandbox: SandboxClient, dependency: str
) -> None:
    """A code is not sent to Spotify while the grant could not be stored."""
    first = call(api, "GET", "/api/spotify/authorize")
    cookies = first.cookies.get_dict()
    parameters = callback_query(sandbox.consent(first.json()["authorize_url"], person="mira_t_42"))
    getattr(api, dependency).refuse()
    check_unavailable(authorize(api, cookies, params=parameters))
    assert sandbox.calls(path="/api/token") == []
    getattr(api, dependency).restore()

    done = eventually(lambda: _connected(api, cookies, parameters))

    assert done["spotify"]["spotify_id"] == "mira_t_42"


def test_state_survives_a_lost_reply_from_redis(
    api: ApiServer, deployment: Deployment, sandbox: SandboxClient
) -> None:
    first = call(api, "GET", "/api/spotify/authorize")
    cookies = first.cookies.get_dict()
    parameters = callback_query(sandbox.consent(first.json()["authorize_url"], person="mira_t_42"))
    # The script that claims the state has to run, so it must not be missing from a new Redis.
    deployment.redis.client.script_load((ROOT / "app/infra/compare_and_set.lua").read_text(encoding="utf-8"))
    api.redis.drop_reply(b"authorization:", since=b"throttle:exchanges")

    check_unavailable(authorize(api, cookies, params=parameters))

    assert sandbox.calls(path="/api/token") == []
    assert _connected(api, cookies, parameters)["status"] == "connected"


def _connected(api: ApiServer, cookies: dict[str, str], parameters: dict[str, str]) -> dict[str, Any]:
    response = authorize(api, cookies, params=parameters)
    assert response.status_code == 200, response.text
    connection: dict[str, Any] = response.json()
    return connection


# --- unexpected errors -----------------------------------------------------------------------------


def broken_view(app: Flask, fail: Callable[[], None]) -> None:
    @app.get("/api/breaks")
    @public
    def breaks() -> Response:
        with writing() as db:
            db.add(User(username="half", email="half@example.com", password_hash="x"))
            db.flush()
            fail()
        return Response(status=204)


def broken_before(app: Flask, fail: Callable[[], None]) -> None:
    app.before_request(fail)
    working_view(app)


def broken_after(app: Flask, fail: Callable[[], None]) -> None:
    @app.after_request
    def after(response: Response) -> Response:
        fail()
        return response

    working_view(app)


def broken_teardown(app: Flask, fail: Callable[[], None]) -> None:
    app.teardown_request(lambda _: fail())
    working_view(app)


def broken_open(app: Flask, fail: Callable[[], None]) -> None:
    real = app.session_interface.open_session

    def open_session(*arguments: Any) -> Any:
        fail()
        return real(*arguments)

    app.session_interface.open_session = open_session  # type: ignore[assignment]
    working_view(app)


def broken_save(app: Flask, fail: Callable[[], None]) -> None:
    real = app.session_interface.save_session

    def save_session(*arguments: Any) -> None:
        fail()
        real(*arguments)

    app.session_interface.save_session = save_session  # type: ignore[assignment]
    working_view(app)


def working_view(app: Flask) -> None:
    @app.get("/api/breaks")
    @public
    def works() -> Response:
        return Response(status=204)


PLACES = [broken_view, broken_before, broken_after, broken_teardown, broken_open, broken_save]
ERRORS = [(ZeroDivisionError, 500), (redis.ConnectionError, 503)]


@pytest.mark.requirement("I2")
@pytest.mark.parametrize(("kind", "status"), ERRORS, ids=["bug", "away"])
@pytest.mark.parametrize("place", PLACES)
def test_any_error_anywhere_has_one_response_and_one_log_line(
    api: ApiServer,
    deployment: Deployment,
    app: Flask,
    client: FlaskClient,
    caplog: pytest.LogCaptureFixture,
    place: Callable[[Flask, Callable[[], None]], None],
    kind: type[Exception],
    status: int,
) -> None:
    breaks = [True]

    def fail() -> None:
        if breaks:
            raise kind("hunter2")

    place(app, fail)

    origin = app.extensions["backline"].config.cors_origins[0]
    response = client.get("/api/breaks", headers={"Origin": origin})
    breaks.clear()

    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    assert response.get_json()["request_id"] == response.headers["X-Request-ID"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers.getlist("Access-Control-Allow-Origin") == [origin]
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
    assert "Origin" in response.vary
    assert "hunter2" not in response.text
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info or status == 503
    assert client.get("/api/breaks").status_code == 204
    assert users(deployment, "half") == (1 if place is broken_view else 0)
    assert client.get("/api/session").get_json()["authenticated"] is False


def test_error_outside_flask_is_not_shown_to_other_origins(app: Flask, client: FlaskClient) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    broken_open(app, fail)

    response = client.get("/api/breaks", headers={"Origin": "https://evil.example"})
    assert response.status_code == 500
    assert "Access-Control-Allow-Origin" not in response.headers
    assert "Origin" in response.vary
