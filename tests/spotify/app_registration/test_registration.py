"""People register applications of their own, and connect with them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra import database
from app.infra.database import reading, writing
from app.models import AccessToken, AppState, Breaker, SpotifyApp, SpotifyUser, User
from app.services import services
from app.spotify.app_registration import routes
from app.spotify.applications.encryption import decrypt_secret
from app.spotify.connections import Connections
from app.spotify.tokens import breaker
from app.spotify.tokens.breaker_rules import Reason
from tests.helpers.factories import advance_time, refresh_due
from tests.helpers.flows import (
    PASSWORD,
    another_tab,
    connect,
    register,
    send_callback,
    slug,
    start_authorization,
)
from tests.helpers.sandbox_client import CLIENT_ID, REDIRECT_URI, SandboxClient
from tests.helpers.servers import LONG
from tests.imports.running import import_links, json_lines

pytestmark = [pytest.mark.settings(SPOTIFY_APPS="both"), pytest.mark.sqlite_only]

Created = dict[str, Any]
NewClient = Callable[[], FlaskClient]
DEPLOYMENT = {
    "client_id": CLIENT_ID,
    "own": False,
    "has_secret": True,
    "redirect_uri": REDIRECT_URI,
    "state": "active",
    "paused_until": None,
    "can_register": True,
}


def put(client: FlaskClient, created: Created, *, public: bool = False, **changes: Any) -> TestResponse:
    members = ("client_id",) if public else ("client_id", "client_secret")
    return client.put("/api/spotify/app", json={name: created[name] for name in members} | changes)


def stored(app: Flask) -> tuple[SpotifyApp | None, SpotifyUser | None]:
    """Return the only application and the only connection."""
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(SpotifyApp)).one_or_none(), db.scalars(
            sa.select(SpotifyUser)
        ).one_or_none()


@pytest.fixture
def created(sandbox: SandboxClient) -> Created:
    """An application of Mira in Spotify's dashboard."""
    return sandbox.create_applications(owner="mira_t_42")[0]


@pytest.mark.parametrize("public", [False, True], ids=["secret", "public"])
def test_own_application_connects_and_refreshes(
    client: FlaskClient, sandbox: SandboxClient, created: Created, public: bool
) -> None:
    register(client)
    assert client.get("/api/spotify/app").json == DEPLOYMENT

    response = put(client, created, public=public)
    own = {**DEPLOYMENT, "client_id": created["client_id"], "own": True, "has_secret": not public}
    assert (response.status_code, response.json) == (200, own)
    sandbox.clear_calls()
    connect(client, sandbox)
    app = client.application
    advance_time(app, sandbox, 3600)
    assert client.get("/api/spotify/v1/me").status_code == 200  # refreshed for a request
    advance_time(app, sandbox, 3600)
    assert refresh_due(app).refreshed == 1

    calls = sandbox.calls("/api/token")
    assert {(call["client_id"], call["client_auth"]) for call in calls} == {
        (created["client_id"], "none" if public else "basic")
    }
    row, connection = stored(app)
    assert row is not None
    assert connection is not None
    assert connection.spotify_app_id == row.id
    assert connection.token.client_id == created["client_id"]
    assert client.get("/api/spotify/app").json == own


def test_spotify_says_what_is_wrong_with_an_application(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    register(client)
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"client_id": "unknown"}, "client_id", "spotify-app-refused"),
        ({"client_secret": "wrong"}, "client_secret", "spotify-app-refused"),
        ({"client_id": "unknown", "client_secret": None}, "client_id", "spotify-app-refused"),
        ({"client_id": CLIENT_ID}, "client_id", "validation-error"),
        ({"client_id": "{tag}"}, "client_id", "validation-error"),
        ({"client_secret": ""}, "client_secret", "validation-error"),
    ]
    for changes, field, problem in wrong:
        response = put(client, created, **changes)
        assert (response.status_code, slug(response)) == (422, problem), changes
        assert list(response.json["errors"]) == [field], changes

    for fault, status in (("google_502", 503), ("rate_limited", 429)):
        sandbox.fault(on="token", kind=fault, times=1)
        assert put(client, created).status_code == status
    assert client.get("/api/spotify/app").json == DEPLOYMENT
    assert stored(client.application) == (None, None)


def test_changed_client_id_ends_the_connection_and_a_new_secret_does_not(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    register(client)
    connect(client, sandbox)  # with the deployment's application
    assert put(client, created).status_code == 200
    assert client.get("/api/spotify").json["status"] == "not_connected"
    connect(client, sandbox)

    sandbox.change_application(created["client_id"], client_secret="fedcba98")
    advance_time(client.application, sandbox, 3600)
    assert slug(client.get("/api/spotify/v1/me")) == "spotify-app-refused"
    assert client.get("/api/spotify/app").json["state"] == "refused"
    assert put(client, created, client_secret="fedcba98").json["state"] == "active"
    assert client.get("/api/spotify/v1/me").status_code == 200
    row, connection = stored(client.application)
    assert row is not None
    assert connection is not None
    with client.application.app_context():
        assert decrypt_secret(services().token_cipher, row) == "fedcba98"
    assert client.get("/api/spotify").json["status"] == "connected"

    other = sandbox.create_applications()[0]
    assert put(client, other).status_code == 200
    assert client.get("/api/spotify").json["status"] == "not_connected"
    connect(client, sandbox)
    assert client.get("/api/spotify").json["status"] == "connected"
    for _ in range(2):
        assert client.delete("/api/spotify/app").status_code == 204
    assert client.get("/api/spotify/app").json == DEPLOYMENT
    assert client.get("/api/spotify").json["status"] == "not_connected"
    assert stored(client.application) == (None, None)


@pytest.mark.parametrize("first", ["own", "deployment"])
def test_callback_uses_the_application_that_was_asked_or_none(
    client: FlaskClient, sandbox: SandboxClient, created: Created, first: str
) -> None:
    register(client)
    if first == "own":
        put(client, created)
    callback = sandbox.consent(start_authorization(client))
    other = sandbox.create_applications()[0]
    assert put(client, other).status_code == 200
    sandbox.clear_calls()

    response = send_callback(client, callback)

    assert (response.status_code, slug(response)) == (400, "spotify-state-mismatch")
    assert sandbox.calls("/api/token") == []
    assert stored(client.application)[1] is None


@pytest.mark.parametrize("removes", [False, True])
def test_application_that_changes_during_the_exchange_gets_no_connection(
    client: FlaskClient,
    sandbox: SandboxClient,
    created: Created,
    monkeypatch: pytest.MonkeyPatch,
    removes: bool,
) -> None:
    register(client)
    put(client, created)
    other, store_grant = sandbox.create_applications()[0], Connections.store_grant

    def store_late(*arguments: Any, **options: Any) -> Any:
        tab = another_tab(client)
        response = tab.delete("/api/spotify/app") if removes else put(tab, other)
        assert response.status_code in (200, 204)
        return store_grant(*arguments, **options)

    callback = sandbox.consent(start_authorization(client))
    monkeypatch.setattr(Connections, "store_grant", store_late)
    response = send_callback(client, callback)

    assert (response.status_code, slug(response)) == (400, "spotify-state-mismatch")
    assert stored(client.application)[1] is None


def test_person_who_is_not_on_the_allowlist_is_told_so(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    register(client)
    put(client, created)
    response = send_callback(client, sandbox.consent(start_authorization(client), person="jonas.k"))
    assert (response.status_code, slug(response)) == (403, "spotify-user-not-registered")

    callback = sandbox.consent(start_authorization(client))
    sandbox.change_application(created["client_id"], client_secret="fedcba98")
    response = send_callback(client, callback)
    assert (response.status_code, slug(response)) == (409, "spotify-app-refused")
    assert stored(client.application)[1] is None


def test_accepted_code_says_nothing_about_the_application_of_the_server(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    register(client)
    put(client, created)
    with client.application.app_context(), writing() as db:
        now = database.db_now(db)
        db.add(Breaker(name=Reason.MISCONFIGURED, opened_at=now, probe_at=now))
        db.execute(
            sa.update(SpotifyApp).values(state=AppState.REFUSED, paused_until=now + timedelta(hours=1))
        )

    connect(client, sandbox)

    with client.application.app_context():
        assert [found.name for found in breaker.open_breakers()] == [Reason.MISCONFIGURED]
    assert client.get("/api/spotify/app").json["state"] == AppState.ACTIVE


@pytest.mark.settings(SPOTIFY_APPS="own")
def test_connecting_requires_an_own_application(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    visit = client.get("/api/spotify/authorize")
    assert (visit.status_code, slug(visit)) == (409, "spotify-app-required")
    page = client.get("/api/spotify/authorize", headers={"Accept": "text/html"})
    assert page.headers["Location"].endswith("?spotify=error-spotify-app-required")
    register(client)
    assert client.get("/api/spotify/app").json == {**DEPLOYMENT, "client_id": None, "has_secret": False}
    assert slug(client.get("/api/spotify/authorize")) == "spotify-app-required"

    put(client, created)
    connect(client, sandbox)


def sign_in(client: FlaskClient, sandbox: SandboxClient) -> TestResponse:
    start = client.get("/api/spotify/authorize", query_string={"intent": "sign_in"})
    return send_callback(client, sandbox.consent(start.json["authorize_url"]))


@pytest.mark.settings(SPOTIFY_SIGN_IN="true")
def test_signing_in_keeps_the_grant_of_an_own_application(
    client: FlaskClient, new_client: NewClient, sandbox: SandboxClient, created: Created
) -> None:
    user = register(client)
    put(client, created)
    connect(client, sandbox)
    _, before = stored(client.application)

    visitor = new_client()
    assert sign_in(visitor, sandbox).status_code == 200

    assert visitor.get("/api/user").json["id"] == user["id"]
    _, after = stored(client.application)
    assert before is not None
    assert after is not None
    assert (after.token.grant_id, after.spotify_app_id) == (before.token.grant_id, before.spotify_app_id)
    assert visitor.get("/api/spotify/v1/me").status_code == 200


def test_visitor_does_not_replace_the_grant_of_an_own_application(
    client: FlaskClient, new_client: NewClient, sandbox: SandboxClient, created: Created
) -> None:
    """The owner's connection would use the application of this server, and its scopes, from then on."""
    register(client)
    put(client, created)
    connect(client, sandbox)
    _, before = stored(client.application)
    visitor = new_client()

    response = send_callback(visitor, sandbox.consent(start_authorization(visitor)))

    assert (response.status_code, slug(response)) == (409, "spotify-account-in-use")
    assert visitor.get("/api/spotify").json == {"status": "not_connected"}
    _, after = stored(client.application)
    assert before is not None
    assert after is not None
    assert (after.token.grant_id, after.spotify_app_id) == (before.token.grant_id, before.spotify_app_id)
    assert client.get("/api/spotify/v1/me").status_code == 200


@pytest.mark.settings(SPOTIFY_SIGN_IN="true")
def test_application_cannot_end_the_last_way_in(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    sign_in(client, sandbox)  # creates an account without a password
    response = put(client, created)
    assert (response.status_code, slug(response)) == (409, "last-way-in")
    row, connection = stored(client.application)
    assert row is None
    assert connection is not None


@pytest.mark.settings(SPOTIFY_APPS="deployment")
def test_own_applications_are_off_by_default(client: FlaskClient, created: Created) -> None:
    register(client)
    response = put(client, created)
    assert (response.status_code, slug(response)) == (403, "spotify-apps-disabled")
    assert client.get("/api/spotify/app").json == {**DEPLOYMENT, "can_register": False}


def test_registrations_are_limited_for_a_user_and_for_an_address(
    client: FlaskClient,
    new_client: NewClient,
    sandbox: SandboxClient,
    created: Created,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routes, "REGISTRATIONS_PER_HOUR", 2)
    monkeypatch.setattr(routes, "REGISTRATIONS_PER_HOUR_AND_ADDRESS", 3)
    other = new_client()
    register(client)
    register(other)

    statuses = [put(caller, created).status_code for caller in (client, client, client, other, other)]

    assert statuses == [200, 200, 429, 200, 429]
    assert len(sandbox.calls("/api/token")) == 3


def test_hanging_check_takes_no_slot_of_the_deployment(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    register(client)
    sandbox.fault(on="token", kind="park", client_id=created["client_id"])
    bulkhead = client.application.extensions["backline"].tokens._bulkhead

    with ThreadPoolExecutor(1) as pool:
        check = pool.submit(put, another_tab(client), created)
        sandbox.wait_for_held(1)
        assert (bulkhead._deployment.exchanging, len(bulkhead._deployment.waiters)) == (0, 0)
        sandbox.release()
        assert check.result(LONG).status_code == 200


def test_session_that_ends_during_the_check_registers_nothing(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    """A password reset ends all sessions, and may have removed what someone else had registered."""
    register(client)
    sandbox.fault(on="token", kind="park")

    with ThreadPoolExecutor(1) as pool:
        registration = pool.submit(put, another_tab(client), created)
        sandbox.wait_for_held(1)
        assert client.delete("/api/user/sessions").status_code == 204
        sandbox.release()
        assert slug(registration.result(LONG)) == "not-signed-in"
    assert stored(client.application)[0] is None


def test_account_is_exported_without_the_secret_and_deleted_with_its_application(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    register(client)
    assert client.get("/api/user/export").json["spotify_app"] is None
    put(client, created)
    connect(client, sandbox)

    export = client.get("/api/user/export")
    own = export.json["spotify_app"]
    assert (own["client_id"], own["has_secret"], own["state"]) == (created["client_id"], True, "active")
    assert created["client_secret"] not in export.text
    assert client.delete("/api/user", json={"password": PASSWORD}).status_code == 204
    assert stored(client.application) == (None, None)


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_simultaneous_registrations_leave_one_application(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    register(client)
    two = sandbox.create_applications(2)
    begin = threading.Barrier(2)

    def register_at_once(created: Created) -> int:
        begin.wait()
        return put(another_tab(client), created).status_code

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(register_at_once, two)) == [200, 200]

    row, _ = stored(client.application)
    assert row is not None
    found = next(created for created in two if created["client_id"] == row.client_id)
    with client.application.app_context():
        assert decrypt_secret(services().token_cipher, row) == found["client_secret"]


def test_removal_keeps_a_connection_of_the_deployment(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    register(client, "ada")
    put(client, created)
    [person] = sandbox.seed(1)
    row = {"username": "ada", "refresh_token": person["refresh_token"]}
    import_links(client.application, json_lines([row]))

    assert client.delete("/api/spotify/app").status_code == 204
    application, connection = stored(client.application)
    assert application is None
    assert connection is not None


def test_application_removed_during_a_refresh_leaves_nothing(
    client: FlaskClient, sandbox: SandboxClient, created: Created
) -> None:
    register(client)
    put(client, created)
    connect(client, sandbox)
    advance_time(client.application, sandbox, 3600)
    sandbox.fault(on="refresh", kind="park")

    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(another_tab(client).get, "/api/spotify/v1/me")
        sandbox.wait_for_held(1)
        assert client.delete("/api/spotify/app").status_code == 204
        sandbox.release()
        assert slug(read.result()) == "spotify-not-connected"

    with client.application.app_context(), reading() as db:
        counts = [db.scalar(sa.select(sa.func.count()).select_from(kind)) for kind in (AccessToken, User)]
    assert counts == [0, 1]
    assert stored(client.application) == (None, None)


def test_refresh_with_the_old_secret_does_not_pause_the_corrected_application(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, created: Created
) -> None:
    register(client)
    put(client, created)
    connect(client, sandbox)
    advance_time(app, sandbox, 2 * 3600)
    secret = {"client_secret": created["client_secret"][::-1]}
    sandbox.change_application(created["client_id"], **secret)
    sandbox.fault(on="refresh", kind="park")
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(another_tab(client).get, "/api/spotify/token")
        sandbox.wait_for_held(1)
        assert put(client, created, **secret).status_code == 200
        sandbox.release()
        assert slug(refused.result(LONG)) == "spotify-app-refused"

    assert client.get("/api/spotify/app").json["state"] == AppState.ACTIVE
    advance_time(app, sandbox, 15)  # the grant's own delay
    assert client.get("/api/spotify/token").status_code == 200
