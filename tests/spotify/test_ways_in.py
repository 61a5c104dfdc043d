"""The owner gets an email when Spotify becomes a way to sign in, and when it stops being one."""

from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.conftest import MakeApp
from tests.helpers.email_change import ADA, NEW, NEW_PASSWORD, register_ada, undo, verify
from tests.helpers.flows import (
    PASSWORD,
    another_tab,
    connect,
    register,
    register_own_application,
    send_callback,
)
from tests.helpers.mail_server import CHANGED, RESET, Mailbox, token_in
from tests.helpers.route_matrix import wait_for_background_work
from tests.helpers.sandbox_client import SandboxClient

pytestmark = [
    pytest.mark.sqlite_only,
    pytest.mark.settings(SPOTIFY_SIGN_IN="true", SPOTIFY_APPS="both"),
]
ADDED, REMOVED = "Spotify was added as a way to sign in", "Spotify was removed as a way to sign in"

NewClient = Callable[[], FlaskClient]


class Notices:
    """The emails of both kinds that Ada has received."""

    def __init__(self, app: Flask, mailbox: Mailbox) -> None:
        self._app, self._mailbox = app, mailbox

    def count(self) -> tuple[int, int]:
        """Return how many say that Spotify was added, and removed."""
        wait_for_background_work(self._app)
        added, removed = (len(self._mailbox.to(ADA, subject)) for subject in (ADDED, REMOVED))
        return added, removed


@pytest.fixture
def notices(app: Flask, mailbox: Mailbox) -> Notices:
    return Notices(app, mailbox)


def sign_in_again(client: FlaskClient, password: str = PASSWORD) -> None:
    client.post("/api/logout")
    assert client.post("/api/login", json={"login": "ada", "password": password}).status_code == 200


def age_sign_in(client: FlaskClient) -> None:
    """Let 16 minutes pass since the sign-in."""
    with client.session_transaction("/api/session") as session:
        session["signed_in_at"] -= 16 * 60


@pytest.mark.parametrize("database_url", ["sqlite", "mariadb"], indirect=True)
def test_owner_is_notified_of_each_change_once(
    client: FlaskClient,
    new_client: NewClient,
    mailbox: Mailbox,
    sandbox: SandboxClient,
    notices: Notices,
) -> None:
    register_ada(client, mailbox)
    connect(client, sandbox)
    assert notices.count() == (1, 0)

    # Neither a new consent nor a sign-in changes that it is a way in.
    renewed = client.get("/api/spotify/authorize", query_string={"reauthorize": "true"})
    assert send_callback(client, sandbox.consent(renewed.json["authorize_url"])).status_code == 200
    visit = (visitor := new_client()).get("/api/spotify/authorize", query_string={"intent": "sign_in"})
    assert send_callback(visitor, sandbox.consent(visit.json["authorize_url"])).status_code == 200
    assert notices.count() == (1, 0)

    assert client.delete("/api/spotify").status_code == 204
    assert notices.count() == (1, 1)
    assert client.delete("/api/spotify").status_code == 204
    assert notices.count() == (1, 1)


def test_owner_is_notified_when_another_application_ends_the_connection(
    client: FlaskClient, mailbox: Mailbox, sandbox: SandboxClient, notices: Notices
) -> None:
    register_ada(client, mailbox)
    connect(client, sandbox)
    register_own_application(client, sandbox)  # ends the connection
    assert notices.count() == (1, 1)
    connect(client, sandbox)
    assert notices.count() == (2, 1)
    same = {"client_id": client.get("/api/spotify/app").json["client_id"]}
    assert client.put("/api/spotify/app", json=same).status_code == 200
    assert client.get("/api/spotify").json["signs_in"] is True
    assert notices.count() == (2, 1)
    assert client.delete("/api/spotify/app").status_code == 204
    assert notices.count() == (2, 2)


def test_owner_who_returns_by_email_is_notified(
    client: FlaskClient, mailbox: Mailbox, sandbox: SandboxClient, notices: Notices
) -> None:
    register_ada(client, mailbox)
    connect(client, sandbox)
    client.post("/api/password-reset", json={"email": ADA})
    body = {"token": token_in(mailbox.wait_for(ADA, RESET)), "password": NEW_PASSWORD}
    assert client.put("/api/password-reset", json=body).status_code == 204
    assert notices.count() == (1, 1)

    # To the restored address, although the intruder's was verified.
    sign_in_again(client, NEW_PASSWORD)
    new_email = {"email": NEW, "current_password": NEW_PASSWORD}
    assert client.patch("/api/user", json=new_email).status_code == 200
    assert verify(client, mailbox, NEW) == (204, "")
    renewed = client.get("/api/spotify/authorize", query_string={"reauthorize": "true"})
    assert send_callback(client, sandbox.consent(renewed.json["authorize_url"])).status_code == 200
    assert notices.count() == (1, 1)
    assert len(mailbox.to(NEW, ADDED)) == 1
    assert undo(client, token_in(mailbox.wait_for(ADA, CHANGED))) == 204
    assert notices.count() == (1, 2)
    assert mailbox.to(NEW, REMOVED) == []


def test_changes_that_concern_no_way_in_are_not_reported(
    client: FlaskClient, mailbox: Mailbox, app: Flask, sandbox: SandboxClient, notices: Notices
) -> None:
    """The address is unverified; the connection does not sign in; or the account is gone anyway."""
    register(client, "ada")
    connect(client, sandbox)
    client.delete("/api/spotify")
    assert verify(client, mailbox, ADA) == (204, "")
    age_sign_in(client)
    assert "signs_in" not in connect(client, sandbox)
    client.delete("/api/spotify")
    sign_in_again(client)
    assert notices.count() == (0, 0)

    connect(client, sandbox)
    assert notices.count() == (1, 0)
    client.delete("/api/user", json={"password": PASSWORD})
    assert notices.count() == (1, 0)
    assert len(mailbox.to(ADA, "Your account was deleted")) == 1


def test_owner_is_not_notified_while_no_one_can_sign_in_with_spotify(
    client: FlaskClient, mailbox: Mailbox, sandbox: SandboxClient, notices: Notices, make_app: MakeApp
) -> None:
    register_ada(client, mailbox)
    connect(client, sandbox)
    assert notices.count() == (1, 0)

    disabled = make_app(SPOTIFY_SIGN_IN="false", SPOTIFY_APPS="both")
    later = another_tab(client, disabled)
    assert later.delete("/api/spotify").status_code == 204
    assert "signs_in" not in connect(later, sandbox)
    wait_for_background_work(disabled)
    assert notices.count() == (1, 0)
