"""No log, response, Redis key, or column contains a secret, after every kind of request.

tests/helpers/secret_scanner.py checks the same after every test. This test covers the most, on a server with
verbose logs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

import pytest
import requests
import sqlalchemy as sa

from app.auth.devices.flow import GRANT_TYPE
from tests.helpers.flows import PASSWORD
from tests.helpers.mail_server import CHANGE_REQUESTED, RESET, VERIFY, running_mailbox, token_in
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.secret_scanner import SecretScanner
from tests.helpers.servers import Server


@pytest.mark.requirement("J1")
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_no_secret_is_written_anywhere(
    scanner: SecretScanner,
    server: Callable[..., AbstractContextManager[Server]],
    sandbox: SandboxClient,
    database_url: str,
) -> None:
    with (
        running_mailbox() as (mailbox, mail_url),
        server(LOG_LEVEL="DEBUG", MAIL_URL=mail_url, SPOTIFY_APPS="both") as api,
        requests.Session() as http,
    ):
        http.trust_env = False
        http.headers["X-Requested-With"] = "test"

        def call(method: str, path: str, **options: object) -> requests.Response:
            return http.request(method, f"{api.url}{path}", timeout=30, **options)  # type: ignore[arg-type]

        account = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
        call("POST", "/api/register", json=account)
        call("POST", "/api/register", json=account)
        call("POST", "/api/login", json={"login": "ada", "password": "not " + PASSWORD})
        call("POST", "/api/login", json={"login": "ada", "password": PASSWORD})
        url = call("GET", "/api/spotify/authorize").json()["authorize_url"]
        back = callback_query(sandbox.consent(url))
        call("GET", "/api/spotify/authorize", params={**back, "state": "wrong"})
        call("GET", "/api/spotify/authorize", params=back)
        call("GET", "/api/spotify/authorize", params=back)
        assert call("GET", "/api/spotify/token").json()["access_token"]
        for fault in ("google_502", "close", "wrong_types", "invalid_client", "false_invalid_grant"):
            sandbox.fault(on="refresh", kind=fault)
            expire(database_url)
            assert call("GET", "/api/spotify/token").status_code in (409, 503)
        call("GET", "/api/spotify")
        call("GET", "/api/session")
        authorize_device(api.url, http)
        use_tokens(api.url, http)
        own = sandbox.create_applications()[0]
        scanner.learn("a client secret", own["client_secret"])
        own_app = {name: own[name] for name in ("client_id", "client_secret")}
        assert call("PUT", "/api/spotify/app", json={**own_app, "client_id": "unknown"}).status_code == 422
        assert call("PUT", "/api/spotify/app", json=own_app).json()["has_secret"]
        assert call("GET", "/api/spotify/app").json()["own"]
        url = call("GET", "/api/spotify/authorize").json()["authorize_url"]
        back = callback_query(sandbox.consent(url))
        assert call("GET", "/api/spotify/authorize", params=back).json()["status"] == "connected"
        sandbox.fault(on="refresh", kind="invalid_client")
        expire(database_url)
        assert call("GET", "/api/spotify/token").status_code in (409, 503)
        new_password = "another sentence, and longer"
        scanner.learn("a password", new_password)
        change = {"current_password": PASSWORD, "new_password": new_password}
        assert call("PUT", "/api/user/password", json=change).status_code == 204
        token = token_in(mailbox.wait_for("ada@example.com", VERIFY))
        assert call("PUT", "/api/email-verification", json={"token": token}).status_code == 204
        change = {"current_password": new_password, "email": "new@example.com"}
        assert call("PATCH", "/api/user", json=change).status_code == 200
        token = token_in(mailbox.wait_for("new@example.com", VERIFY))
        assert call("PUT", "/api/email-verification", json={"token": token}).status_code == 204
        assert call("PUT", "/api/email-verification", json={"token": token}).status_code == 400
        token = token_in(mailbox.wait_for("ada@example.com", CHANGE_REQUESTED))
        body = {"token": token, "decision": "confirm"}
        assert call("PUT", "/api/email-change", json=body).status_code == 422
        assert len(call("GET", "/api/user/sessions").json()["items"]) == 1
        assert call("GET", "/api/user/export").json()["user"]["username"] == "ada"
        assert call("POST", "/api/password-reset", json={"email": "new@example.com"}).status_code == 202
        token = token_in(mailbox.wait_for("new@example.com", RESET))
        body = {"token": token, "password": PASSWORD}
        assert call("PUT", "/api/password-reset", json=body).status_code == 204
        call("POST", "/api/login", json={"login": "ada", "password": PASSWORD})
        assert '"route":"/api/spotify/authorize"' in api.log  # requests were logged
        call("POST", "/api/logout")
        call("POST", "/api/login", json={"login": "ada", "password": PASSWORD})
        assert call("DELETE", "/api/user", json={"password": PASSWORD}).status_code == 204

    places = scanner.origins
    assert any(place.endswith("wsgi:app") for place in places)
    assert places >= {
        "the response to GET /api/spotify/authorize",
        "the response to GET /api/spotify/token",
        "Redis",
        "the response to GET /api/user/export",
        "the response to POST /api/oauth/token",
        "the response to POST /api/user/tokens",
        "the response to PUT /api/password-reset",
    }
    assert scanner.scan() == []


def authorize_device(url: str, person: requests.Session) -> None:
    """Obtain a token for a device, and try to obtain another one with the same code."""
    form = {"client_name": "my-cli", "scope": "account:read"}
    started = person.post(f"{url}/api/oauth/device_authorization", data=form, timeout=30).json()
    decision = {"decision": "approve", "current_password": PASSWORD}
    page = f"{url}/api/user/devices/{started['user_code']}"
    assert person.get(page, timeout=30).json()["client_name"] == "my-cli"
    assert person.post(page, json=decision, timeout=30).status_code == 204
    poll = {"grant_type": GRANT_TYPE, "device_code": started["device_code"]}
    for expected in (200, 400):
        assert person.post(f"{url}/api/oauth/token", data=poll, timeout=30).status_code == expected


def use_tokens(url: str, person: requests.Session) -> None:
    """Create a personal access token, use it where it is accepted and where not, and revoke it."""
    new = {"name": "x", "rights": ["account:read", "spotify:read"], "current_password": PASSWORD}
    created = person.post(f"{url}/api/user/tokens", json=new, timeout=30).json()
    token, path = created["token"], f"/api/user/tokens/{created['id']}"

    def status(header: str, path: str = "/api/user", method: str = "GET") -> int:
        return requests.request(method, url + path, headers={"Authorization": header}, timeout=30).status_code

    assert [status(f"Bearer {token}") for _ in range(3)] == [200] * 3
    assert status(f"Bearer {token}", "/api/session") == 200
    assert status(f"Bearer {token}", "/api/spotify/v1/me") in (200, 401, 409, 503)
    assert status(f"Bearer {token}", path, "DELETE") == 403
    assert status(f"Bearer {token}x") == status(f"Bearer {token}, Bearer {token}") == 401
    assert status(f"Bearer {token}", f"/api/user?access_token={token}") == 200
    assert status(f"Basic {token}") == 401
    assert person.get(f"{url}/api/user/tokens", timeout=30).json()["items"][0]["last_used_ip"]
    assert person.delete(url + path, timeout=30).status_code == 204
    assert status(f"Bearer {token}") == 401


def expire(database_url: str) -> None:
    """Make the access token expired and due for a refresh."""
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        past = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=1)
        connection.execute(
            sa.text("UPDATE access_tokens SET expires_at = :past, not_before = NULL"), {"past": past}
        )
    engine.dispose()
