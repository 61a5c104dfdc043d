"""The secret scanner finds each kind of secret everywhere, except where it is allowed."""

import base64
import hashlib
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import jwt
import pytest
import redis
import requests
import sqlalchemy as sa
from flask import Flask, session
from flask.testing import FlaskClient

from app.infra.database import writing
from app.models import SpotifyUser
from app.spotify.clients.accounts import SpotifyAccounts
from app.web.access import public
from tests.conftest import SETTINGS
from tests.helpers import set_cookie
from tests.helpers.flows import PASSWORD, connect, register, start_authorization
from tests.helpers.sandbox_client import CLIENT_ID, CLIENT_SECRET, SandboxClient, callback_query
from tests.helpers.secret_scanner import Leak, SecretScanner
from tests.helpers.servers import LONG, ROOT, Server, process_environment

CODE = "AQ" + "c0de_" * 40
ACCESS_TOKEN = "BQ" + "t0ken-" * 40
JWT = jwt.encode({"sub": "1"}, "x" * 32, headers={"kid": "a-key"})
log = logging.getLogger("app.somewhere")


def kinds(leaks: list[Leak]) -> list[str]:
    return [leak.kind for leak in leaks]


def origins_of(leaks: list[Leak]) -> set[str]:
    return {leak.where for leak in leaks}


@pytest.fixture
def verifiers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the verifiers of the authorizations that have started."""
    seen: list[str] = []
    original = SpotifyAccounts.authorize_url

    def record_verifier(accounts: SpotifyAccounts, *application: Any, verifier: str, **options: Any) -> str:
        seen.append(verifier)
        return original(accounts, *application, verifier=verifier, **options)

    monkeypatch.setattr(SpotifyAccounts, "authorize_url", record_verifier)
    return seen


# --- logs ----------------------------------------------------------------------------------------


def test_scanner_finds_a_token_in_a_log_at_any_level(scanner: SecretScanner) -> None:
    log.debug("refreshed %s", ACCESS_TOKEN)
    log.warning("rejected", extra={"token": CODE})

    found = scanner.scan()

    assert set(kinds(found)) == {"an access token", "a code or refresh token"}
    assert origins_of(found) == {"the log of app.somewhere"}


def test_scanner_finds_a_token_in_a_traceback(scanner: SecretScanner) -> None:
    try:
        int(CODE)
    except ValueError:
        log.exception("failed")

    assert kinds(scanner.scan()) == ["a code or refresh token"]


def test_scanner_does_not_change_what_tests_see_of_the_log(
    scanner: SecretScanner, caplog: pytest.LogCaptureFixture
) -> None:
    log.debug("of no interest")
    log.warning("of interest")

    assert [record.message for record in caplog.records] == ["of interest"]


def test_scanner_ignores_loggers_that_the_application_silences(scanner: SecretScanner) -> None:
    """Werkzeug and urllib3 would log whole URLs. `app/infra/log_setup.py` prevents that."""
    logging.getLogger("urllib3.connectionpool").debug("GET /?code=%s", CODE)
    assert scanner.scan() == []

    logging.getLogger("urllib3.connectionpool").warning("GET /?code=%s", CODE)
    assert origins_of(scanner.scan()) == {"the log of urllib3.connectionpool"}


def test_scanner_searches_what_our_programs_print(scanner: SecretScanner) -> None:
    command = [sys.executable, "-c", f"print('{CODE}')"]
    subprocess.run(command, capture_output=True, check=True)
    assert scanner.scan() == []  # not our response

    subprocess.run([*command, "wsgi:app", "doctor", "--password"], capture_output=True, check=True)
    [leak] = scanner.scan()
    assert leak.kind == "a code or refresh token"
    assert leak.where.startswith("the output of ")
    assert leak.where.endswith(" wsgi:app doctor")


def test_scanner_searches_what_a_test_passes_to_it(scanner: SecretScanner) -> None:
    scanner.record(f"Traceback: {CODE}".encode(), "the scheduler's log")

    assert origins_of(scanner.scan()) == {"the scheduler's log"}


# --- Redis and the database ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "key", f"\x01{ACCESS_TOKEN}"),
        ("SET", f"token:{ACCESS_TOKEN}", "1"),
        ("HSET", "hash", "field", ACCESS_TOKEN),
        ("RPUSH", "list", ACCESS_TOKEN),
        ("ZADD", "sorted", "1", ACCESS_TOKEN),
        ("EVAL", "redis.call('set', 'key', ARGV[1])", "0", ACCESS_TOKEN),
    ],
    ids=lambda command: command[0],
)
def test_scanner_finds_values_that_redis_no_longer_has(
    scanner: SecretScanner, redis_url: str, command: tuple[str, ...]
) -> None:
    with redis.Redis.from_url(redis_url) as store:
        store.execute_command(*command)
        store.flushall()

    found = scanner.scan()
    assert (kinds(found), origins_of(found)) == (["an access token"], {"Redis"})


def test_scanner_finds_a_plain_token_in_a_column_but_not_an_encrypted_one(
    scanner: SecretScanner, client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    assert scanner.scan() == []

    with app.app_context(), writing() as db:
        db.execute(sa.update(SpotifyUser).values(display_name=ACCESS_TOKEN[:200]))
    found = scanner.scan()

    assert (kinds(found), origins_of(found)) == (
        ["an access token"],
        {"the column spotify_users.display_name"},
    )
    with app.app_context(), writing() as db:
        db.execute(sa.update(SpotifyUser).values(display_name=None))


# --- responses -------------------------------------------------------------------------------------


@pytest.fixture
def respond(app: Flask, client: FlaskClient) -> Callable[..., None]:
    """Make the app respond with a body and headers."""
    responses: list[tuple[str, dict[str, str]]] = []

    @app.get("/api/respond")
    @public
    def view() -> tuple[str, dict[str, str]]:
        return responses[-1]

    def send(body: str = "", **headers: str) -> None:
        responses.append((body, {name.replace("_", "-"): value for name, value in headers.items()}))
        client.get("/api/respond")

    return send


def test_scanner_allows_a_session_id_in_its_cookie_only(
    scanner: SecretScanner, client: FlaskClient, respond: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_cookie, "check", lambda _: None)  # these headers are not valid
    register(client)
    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    assert scanner.scan() == []

    for body in (
        {"body": f"you are {cookie.value}"},
        {"X_Session": cookie.value},
        {"Set_Cookie": f"other={cookie.value}; Path=/"},
        {"Set_Cookie": f"backline_session={'x' * 43}; Path=/{cookie.value}"},
        {"body": f"joined_{cookie.value}_with_more"},
    ):
        respond(**body)
        found = scanner.scan()
        assert kinds(found) == ["a session id"], body
        assert origins_of(found) == {"the response to GET /api/respond"}
    respond(Set_Cookie=f"backline_session={ACCESS_TOKEN}; Path=/")
    assert kinds(scanner.scan()) == ["an access token"]


def test_scanner_finds_a_session_id_in_logs_and_redis(
    scanner: SecretScanner, client: FlaskClient, app: Flask, redis_url: str
) -> None:
    @app.get("/api/leaks")
    @public
    def leaking_view() -> str:
        log.info("request", extra={"sid": session.sid})  # type: ignore[attr-defined]
        return ""

    register(client)
    client.get("/api/leaks")
    with redis.Redis.from_url(redis_url) as store:
        store.set(f"seen:{client.get_cookie('backline_session').value}", 1)  # type: ignore[union-attr]
    found = scanner.scan()

    assert kinds(found) == ["a session id", "a session id"]
    assert origins_of(found) == {"the log of app.somewhere", "Redis"}


def test_scanner_allows_a_device_code_in_the_response_that_issues_it_only() -> None:
    code = secrets.token_urlsafe(32)
    issued = f'{{"device_code":"{code}","user_code":"BCDF-GHJK"}}'
    scanner = SecretScanner()

    scanner.record_response("POST /api/oauth/device_authorization", "200 OK", [], issued.encode())
    assert scanner.scan() == []

    scanner.record_response("POST /api/oauth/token", "400 Bad Request", [], issued.encode())
    scanner.record(f"SET device-authorization:{code}", "Redis")
    assert kinds(scanner.scan()) == ["a device code", "a device code"]


def test_scanner_allows_an_access_token_in_one_member_of_one_response() -> None:
    def leaks_in(body: str, request: str = "GET /api/spotify/token") -> list[str]:
        scanner = SecretScanner()
        scanner.record_response(request, "200 OK", [], body.encode())
        return kinds(scanner.scan())

    assert leaks_in(f'{{"access_token": "{ACCESS_TOKEN}", "expires_in": 3600}}') == []
    assert leaks_in(f'{{"access_token": "{ACCESS_TOKEN}"}}', "GET /api/spotify") == ["an access token"]
    assert leaks_in(f'{{"access_token": "{ACCESS_TOKEN}"}}', "POST /api/spotify/token") == ["an access token"]
    assert leaks_in(f'{{"access_token": "{ACCESS_TOKEN}", "id": "{ACCESS_TOKEN}"}}') == ["an access token"]
    assert leaks_in(f'{{"spotify": {{"access_token": "{ACCESS_TOKEN}"}}}}') == ["an access token"]
    assert leaks_in(f'{{"access_token": "{CODE}"}}') == ["a code or refresh token"]
    assert leaks_in(f'[{{"access_token": "{ACCESS_TOKEN}"}}]') == ["an access token"]
    assert leaks_in(f"Error: {ACCESS_TOKEN}") == ["an access token"]


def test_scanner_allows_a_state_in_the_consent_url_only(
    scanner: SecretScanner, client: FlaskClient, respond: Callable[..., None], redis_url: str
) -> None:
    state = callback_query(start_authorization(client))["state"]
    client.get("/api/spotify/authorize", headers={"Accept": "text/html"})
    assert scanner.scan() == []

    respond(f'{{"detail": "{state} is not yours"}}')
    respond(Location=f"http://127.0.0.1/callback?state={state}")
    log.info("came back", extra={"url": f"/api/spotify/authorize?code=x&state={state}"})
    with redis.Redis.from_url(redis_url) as store:
        store.set(f"authorization:{state}", 1)
    found = scanner.scan()

    assert set(kinds(found)) == {"an authorization's state"}
    assert origins_of(found) == {"the response to GET /api/respond", "the log of app.somewhere", "Redis"}


def test_scanner_skips_static_documents_while_they_are_unchanged(client: FlaskClient) -> None:
    with client.get("/api/docs/swagger-ui-bundle.js") as asset:
        script = asset.data
    path, example = "GET /api/docs/swagger-ui-bundle.js", f'{{"example": "{PASSWORD}"}}'.encode()

    def leaks_in(request: str, body: bytes) -> list[str]:
        scanner = SecretScanner()
        scanner.learn("a password", PASSWORD)
        scanner.record_response(request, "200 OK", [], body)
        return kinds(scanner.scan())

    assert leaks_in(path, script) == []
    assert "a code or refresh token" in leaks_in(path, script + CODE.encode())
    assert leaks_in("GET /api/openapi.json", example) == []
    assert leaks_in("GET /api/openapi.json", PASSWORD.encode()) == ["a password"]
    assert leaks_in("GET /api/user", example) == ["a password"]


def test_scanner_recognizes_a_verifier_by_its_challenge(
    scanner: SecretScanner, client: FlaskClient, verifiers: list[str]
) -> None:
    url = start_authorization(client)
    [verifier] = verifiers
    assert callback_query(url)["code_challenge"] == _challenge(verifier)
    log.info("exchange", extra={"form": f"code_verifier={verifier}&grant_type=x"})
    assert kinds(scanner.scan()) == ["a PKCE verifier"]

    log.info("exchange", extra={"form": f"v{verifier}"})
    assert kinds(scanner.scan()) == ["a PKCE verifier"]


@pytest.mark.parametrize("length", [43, 44, 127, 128])
def test_scanner_finds_a_verifier_of_any_length(length: int) -> None:
    scanner, verifier = SecretScanner(), "Zm9v" * 32
    url = f"https://accounts.spotify.com/authorize?state=s&code_challenge={_challenge(verifier[:length])}"
    scanner.record(f"verifier={verifier[:length]}", "a log")
    scanner.record_response("GET /", "302 Found", [("Location", url)], b"")  # learned after the text

    assert kinds(scanner.scan()) == ["a PKCE verifier"]


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def test_scanner_finds_a_session_id_that_it_did_not_see_issued(scanner: SecretScanner) -> None:
    """The session of a browser, on a server that logs session ids."""
    scanner.record(f"session {secrets.token_urlsafe(32)} opened", "a log")
    scanner.record(
        f"key {secrets.token_hex(32)}, {'a_rather_long_name_of_a_test_in_a_traceback_1'[:43]}", "a log"
    )

    assert kinds(scanner.scan()) == ["an unknown id of 256 bits"]


@pytest.mark.sqlite_only
def test_scanner_searches_the_responses_and_the_log_of_a_real_server(
    scanner: SecretScanner, server: Callable[..., AbstractContextManager[Server]]
) -> None:
    with server(workers=1) as api, requests.Session() as http:
        http.trust_env = False
        http.headers["X-Requested-With"] = "test"
        http.get(f"{api.url}/api/spotify/authorize", timeout=LONG)
        sid = http.cookies["backline_session"]
    scanner.record(f"what the server issued is known: {sid}", "here")

    assert "the response to GET /api/spotify/authorize" in scanner.origins
    assert any(place.endswith("wsgi:app") for place in scanner.origins)
    assert [str(leak) for leak in scanner.scan()] == [
        "a session id in here: what the server issued is known: [a session id]"
    ]


# --- settings and passwords ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (PASSWORD, "a password"),
        (f"login=ada&password={quote_plus(PASSWORD)}", "a password"),
        (CLIENT_SECRET, "the client secret"),
        (base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode(), "the client secret"),
        (SETTINGS["SECRET_KEY"], "the secret key"),
        (SETTINGS["TOKEN_ENCRYPTION_KEYS"], "an encryption key"),
        (SETTINGS["JWT_SIGNING_KEYS"], "a signing key"),
        (JWT, "a JWT"),
        (repr((bytes(range(32)),)), "an encryption key"),
        (bytes(range(32)).hex(), "an encryption key"),
    ],
)
def test_scanner_finds_settings_and_passwords(scanner: SecretScanner, text: str, kind: str) -> None:
    log.info("starting", extra={"seen": text})

    assert kinds(scanner.scan()) == [kind]


# --- reports -----------------------------------------------------------------------


def test_report_names_kind_and_place_but_not_the_secret() -> None:
    scanner = SecretScanner()
    scanner.learn("a password", PASSWORD)
    scanner.record(f'{{"event": "login", "password": "{PASSWORD}",\n "token": "{ACCESS_TOKEN}"}}', "a log")

    around = '{"event": "login", "password": "[a password]", "token": "[an access token]"}'
    assert [str(leak) for leak in scanner.scan()] == [
        f"a password in a log: {around}",
        f"an access token in a log: {around}",
    ]


def test_overlapping_secrets_are_masked_as_one() -> None:
    scanner = SecretScanner()
    scanner.learn("a password", ACCESS_TOKEN[-20:] + " and more")
    scanner.record(f"token {ACCESS_TOKEN} and more.", "a log")

    assert [leak.excerpt for leak in scanner.scan()] == ["token [an access token]."]


def test_scan_discards_what_it_searched(scanner: SecretScanner) -> None:
    log.info(CODE)

    assert len(scanner.scan()) == 1
    assert scanner.scan() == []


SUITE = f"""
import logging

def test_of_nothing_else():
    logging.getLogger("app").info("{ACCESS_TOKEN}")

def test_that_is_clean():
    logging.getLogger("app").info("nothing")

def test_that_fails_anyway():
    logging.getLogger("app").info("{ACCESS_TOKEN}")
    assert 1 + 1 == 3
"""


@pytest.mark.processes
def test_report_names_the_test_and_keeps_its_own_failure(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--tb=short"],
        cwd=ROOT,
        env=process_environment({"PYTHONPATH": os.fspath(ROOT)}),
        capture_output=True,
        text=True,
        check=False,
    )

    body = done.stdout
    assert "1 failed, 2 passed, 1 error" in body
    assert "ERROR at teardown of test_of_nothing_else" in body
    failure = body.partition("FAILURES")[2]
    assert "assert (1 + 1) == 3" in failure
    assert "an access token in the log of app:" in failure
    assert ACCESS_TOKEN not in body


def test_helpers_that_read_program_output_pass_it_to_the_scanner() -> None:
    reading = {
        path.name: text
        for path in (ROOT / "tests").rglob("*.py")
        if '"wsgi:app"' in (text := path.read_text(encoding="utf-8")) and "subprocess.Popen(" in text
    }

    assert "servers.py" in reading
    assert [
        name
        for name, text in reading.items()
        if "secret_scanner.record" not in text and ".communicate(" not in text
    ] == []
