"""Connections that were made with the application of a server that has none anymore wait for it."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.errors import SpotifyAppRequired
from app.infra import database
from app.infra.database import reading, writing
from app.models import AccessToken, Breaker, Right
from app.services import services
from app.spotify.tokens import breaker
from app.spotify.tokens.breaker_rules import Reason
from tests.conftest import MakeApp
from tests.helpers.factories import advance_time, refresh_due
from tests.helpers.flows import another_tab, connect, create_token, register, slug
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.sqlite_only

HOUR = 3600


@pytest.fixture
def without(make_app: MakeApp) -> Flask:
    """The same server, after its operator has removed its application."""
    return make_app(SPOTIFY_APPS="own", SPOTIFY_CLIENT_ID="", SPOTIFY_CLIENT_SECRET="")


def stored(app: Flask) -> AccessToken:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(AccessToken)).one()


@pytest.mark.parametrize("age", [0, HOUR - 120, HOUR], ids=["valid", "about-to-expire", "expired"])
def test_nothing_is_sent_and_the_person_can_connect_with_their_own(
    app: Flask, without: Flask, client: FlaskClient, sandbox: SandboxClient, age: int
) -> None:
    register(client)
    connect(client, sandbox)
    token = {"Authorization": f"Bearer {create_token(client, Right.SPOTIFY_READ)}"}
    advance_time(app, sandbox, age)
    before = stored(app)
    sandbox.clear_calls()
    browser = another_tab(client, without)

    assert browser.get("/api/spotify").json["status"] == "reauthorization_required"
    assert browser.get("/api/session").json["spotify"]["status"] == "reauthorization_required"
    for path in ("/api/spotify/v1/me", "/api/spotify/token", "/api/spotify/authorize"):
        response = browser.get(path)
        assert (response.status_code, slug(response)) == (409, "spotify-app-required"), path
    response = without.test_client().get("/v1/me", headers=token)
    assert (response.status_code, slug(response)) == (409, "spotify-reauthorization-required")
    with without.app_context(), pytest.raises(SpotifyAppRequired):
        services().applications.of_grant(before)
    assert sandbox.calls() == []
    after = stored(app)
    assert (after.state, after.refresh_token, after.due_at) == ("active", before.refresh_token, before.due_at)

    [created] = sandbox.create_applications()
    own = {name: created[name] for name in ("client_id", "client_secret")}
    assert browser.put("/api/spotify/app", json=own).status_code == 200
    connect(browser, sandbox)
    assert browser.get("/api/spotify/v1/me").status_code == 200


def test_scheduler_waits_until_the_application_is_back(
    app: Flask, without: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    advance_time(app, sandbox, HOUR)
    before = stored(app)
    with app.app_context(), writing() as db:
        now = database.db_now(db)
        db.add(Breaker(name=Reason.MISCONFIGURED, opened_at=now, probe_at=now))
    sandbox.clear_calls()

    assert refresh_due(without).total == 0
    assert sandbox.calls() == []
    with app.app_context():
        assert breaker.open_breakers() == []
    after = stored(app)
    assert (after.state, after.failures, after.refresh_token) == ("active", 0, before.refresh_token)
    assert after.due_at is not None
    assert after.due_at > before.expires_at + timedelta(hours=23)
    doctor = without.test_cli_runner().invoke(args=["doctor"])
    assert (
        "warn  Spotify application: none, but 1 connections were made with one of this server"
        in doctor.stdout
    )
    assert sandbox.calls() == []

    assert client.get("/api/spotify/v1/me").status_code == 200
    assert stored(app).generation == 1


@pytest.mark.parametrize("database_url", ["sqlite", "mariadb"], indirect=True)
def test_metrics_and_commands_tell_connections_that_wait_from_active_ones(
    app: Flask, without: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)

    for server, state in ((app, "active"), (without, "waiting")):
        metrics = server.test_client().get("/metrics").text
        assert f'backline_connections{{state="{state}"}} 1.0' in metrics
        counted = server.test_cli_runner().invoke(args=["tokens", "status"]).stdout
        assert {line.split()[0]: line.split()[-1] for line in counted.splitlines()[:4]}[state] == "1"
