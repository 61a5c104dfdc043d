"""A malformed response of the token endpoint does not end a connection."""

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading
from app.models import AccessToken, TokenRefresh
from app.models.token_refresh import Outcome
from app.services import services
from app.spotify.tokens.encryption import decrypt_token
from tests.conftest import MakeApp
from tests.helpers.factories import advance_time
from tests.helpers.flows import another_tab, connect, slug
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.upstream import Received, Reply, running_upstream

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]


@pytest.fixture
def connected(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> FlaskClient:
    """Return the client of a person whose access token has expired. Refresh tokens work only once."""
    sandbox.settings(rotate=True, rotation_grace_s=0)
    connect(client, sandbox)
    advance_time(app, sandbox, 3700)
    return client


def row(app: Flask) -> AccessToken:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(AccessToken)).one()


def token(client: FlaskClient) -> int:
    return client.get("/api/spotify/token").status_code


def statuses(sandbox: SandboxClient) -> list[int]:
    return [call["status"] for call in sandbox.calls(grant_type="refresh_token")]


@pytest.mark.parametrize("failed", [None, 17], ids=repr)
def test_refresh_token_without_an_access_token_is_stored(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, failed: object
) -> None:
    sandbox.fault(
        on="refresh", kind="changed_members", members={"access_token": failed}, times=2, after_effect=True
    )

    for _ in range(2):
        response = connected.get("/api/spotify/token")
        assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
        assert 1 <= int(response.headers["Retry-After"]) <= 2
        advance_time(app, sandbox, 5)

    assert token(connected) == 200
    assert statuses(sandbox) == [200, 200, 200]  # no used token was sent
    assert (row(app).generation, row(app).failures, row(app).spare_refresh_token) == (1, 0, None)


def test_unusable_refresh_token_is_replaced_by_the_old_one(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    sandbox.fault(
        on="refresh", kind="changed_members", members={"access_token": None, "refresh_token": "AQ-bogus"}
    )

    responses = []
    for _ in range(3):
        responses.append(token(connected))
        advance_time(app, sandbox, 5)

    assert responses == [503, 503, 200]
    assert statuses(sandbox) == [200, 400, 200]
    assert row(app).state == "active"


def test_late_refresh_token_is_stored_as_a_spare(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, make_app: MakeApp
) -> None:
    """A call outlasts its lease. Its response has a refresh token, but no access token."""

    def reply(_: Received) -> Reply:
        advance_time(app, sandbox, 31)
        assert token(connected) == 200
        return Reply(body=b'{"refresh_token": "AQ-late"}')

    with running_upstream() as accounts:
        accounts.reply = reply
        slow_worker = make_app(SPOTIFY_ACCOUNTS_URL=accounts.root_url)
        assert token(another_tab(connected, slow_worker)) == 200

    with app.app_context():
        assert decrypt_token(services().token_cipher, row(app), "refresh_token") != "AQ-late"
        spare = row(app)
        spare.refresh_token = spare.spare_refresh_token
        assert decrypt_token(services().token_cipher, spare, "refresh_token") == "AQ-late"


def test_invalid_grant_with_a_new_refresh_token_does_not_end_the_grant(
    connected: FlaskClient, app: Flask, make_app: MakeApp
) -> None:
    with running_upstream() as accounts:
        accounts.replies(Reply(400, b'{"error": "invalid_grant", "refresh_token": "AQ-new"}'))
        worker = make_app(SPOTIFY_ACCOUNTS_URL=accounts.root_url)
        assert token(another_tab(connected, worker)) == 503
        assert len(accounts.calls) == 1

    with app.app_context(), reading() as db:
        assert row(app).state == "active"
        assert decrypt_token(services().token_cipher, row(app), "refresh_token") == "AQ-new"
        assert db.scalars(sa.select(TokenRefresh.outcome)).one() == Outcome.UNAVAILABLE


@pytest.mark.parametrize("rotate", [False, True], ids=["non-rotating", "rotating"])
def test_consent_without_an_access_token_still_connects(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, rotate: bool
) -> None:
    sandbox.settings(rotate=rotate, rotation_grace_s=0)
    members = {"access_token": None, "expires_in": "3600", "token_type": None, "scope": ["x"]}
    sandbox.fault(on="code", kind="changed_members", members=members, after_effect=True)

    connect(client, sandbox)

    assert token(client) == 200
    advance_time(app, sandbox, 3700)
    assert client.get("/api/spotify/v1/me").status_code == 200
