"""Nothing secret in any log, answer, Redis key or column: looked for, after a day's worth of events."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import redis
import requests
import sqlalchemy as sa

from tests.journeys import PASSWORD
from tests.sandbox_client import CLIENT_SECRET, SandboxClient, answer_of
from tests.services import Server

# What the sandbox's codes and tokens look like, whichever they are.
TOKEN = re.compile(rb"[AB]Q[\w-]{60,}")


def test_no_secret_is_written_anywhere(
    env: dict[str, str],
    server: Callable[..., AbstractContextManager[Server]],
    sandbox: SandboxClient,
    redis_url: str,
    database_url: str,
) -> None:
    answers: list[bytes] = []
    with server(LOG_LEVEL="DEBUG") as api, requests.Session() as http:
        http.trust_env = False
        http.headers["X-Requested-With"] = "test"

        def call(method: str, path: str, **options: object) -> requests.Response:
            response = http.request(method, f"{api.url}{path}", timeout=30, **options)  # type: ignore[arg-type]
            response.headers.pop("Set-Cookie", None)  # where the session's id belongs
            answers.append(repr(response.headers).encode() + response.content)
            return response

        account = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
        call("POST", "/api/register", json=account)
        call("POST", "/api/register", json=account)
        call("POST", "/api/login", json={"login": "ada", "password": "not " + PASSWORD})
        call("POST", "/api/login", json={"login": "ada", "password": PASSWORD})
        url = http.get(f"{api.url}/api/spotify/authorize", timeout=30).json()["authorize_url"]
        state = parse_qs(urlsplit(url).query)["state"][0]
        back = answer_of(sandbox.consent(url))
        call("GET", "/api/spotify/authorize", params={**back, "state": "wrong"})
        call("GET", "/api/spotify/authorize", params=back)
        call("GET", "/api/spotify/authorize", params=back)
        token = http.get(f"{api.url}/api/spotify/token", timeout=30).json()["access_token"]
        for fault in ("google_502", "close", "wrong_types", "invalid_client", "false_invalid_grant"):
            sandbox.fault(on="refresh", kind=fault)
            expire(database_url)
            assert call("GET", "/api/spotify/token").status_code in (409, 503)
        call("GET", "/api/spotify")
        call("GET", "/api/session")
        sid = http.cookies["session"]
        log = api.log.encode()
        call("POST", "/api/logout")

    assert b'"route": "/api/spotify/authorize"' in log  # it was written to
    stored = dump(redis_url) + columns(database_url)
    secrets = [PASSWORD, CLIENT_SECRET, env["SECRET_KEY"], state, back["code"], token, sid]
    for place, text in (("log", log), ("answers", b"".join(answers)), ("stored", stored)):
        assert [secret for secret in secrets if secret.encode() in text] == [], place
        assert TOKEN.findall(text) == [], place


def expire(database_url: str) -> None:
    """Let the token have run out, and no pause stand in the way."""
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        past = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=1)
        connection.execute(
            sa.text("UPDATE access_tokens SET expires_at = :past, not_before = NULL"), {"past": past}
        )
    engine.dispose()


def dump(redis_url: str) -> bytes:
    """Every key and value in Redis."""
    with redis.Redis.from_url(redis_url) as client:
        return b"".join(key + (client.get(key) or b"") for key in client.keys("*"))


def columns(database_url: str) -> bytes:
    """Every value in every column of the database."""
    engine = sa.create_engine(database_url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        rows = [row for table in metadata.tables.values() for row in connection.execute(table.select())]
    engine.dispose()
    return b"".join(
        value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row
    )
