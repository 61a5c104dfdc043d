"""Changing the email address: verified before it takes effect, and undone from the old mailbox."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import writing
from app.models import AccessToken, MailKind, User
from app.services import services
from tests.helpers.email_change import (
    ADA,
    NEW,
    NEW_PASSWORD,
    OTHER,
    addresses,
    change,
    register_ada,
    session_epoch,
    undo,
    verify,
)
from tests.helpers.factories import advance_time, run_maintenance
from tests.helpers.flows import (
    PASSWORD,
    connect,
    create_token,
    login,
    register,
    register_own_application,
    slug,
)
from tests.helpers.mail_server import (
    CHANGE_REQUESTED,
    CHANGE_UNDONE,
    CHANGED,
    RESET,
    VERIFY,
    Mailbox,
    token_in,
)
from tests.helpers.route_matrix import wait_for_background_work
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.slow


@pytest.fixture
def ada(mailbox: Mailbox, client: FlaskClient) -> FlaskClient:
    """Ada, who is signed in and has verified her address."""
    return register_ada(client, mailbox)


def test_new_address_takes_effect_when_it_is_verified(
    ada: FlaskClient, mailbox: Mailbox, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    changed = change(ada, "New@Example.com")

    assert (changed["email"], changed["email_verified"], changed["pending_email"]) == (ADA, True, NEW)
    assert ada.get("/api/session").json["user"] == changed
    token = token_in(mailbox.wait_for("New@Example.com".replace("Example", "example"), VERIFY))
    assert mailbox.wait_for(ADA, CHANGE_REQUESTED)
    # Until then, the new address cannot be used.
    assert login(new_client(), NEW).status_code == 401
    assert ada.post("/api/password-reset", json={"email": NEW}).status_code == 202
    wait_for_background_work(app)
    assert [mail["Subject"] for mail in mailbox.mails if mail["To"].lower() == NEW] == [VERIFY]

    assert ada.put("/api/email-verification", json={"token": token}).status_code == 204
    assert ada.put("/api/email-verification", json={"token": token}).status_code == 400

    assert addresses(ada) == (NEW, True, None)
    assert mailbox.wait_for(ADA, CHANGED)
    assert login(new_client(), NEW).status_code == 200
    assert login(new_client(), ADA).status_code == 401


@pytest.mark.parametrize("taken_effect", [False, True])
def test_link_to_the_old_address_undoes_the_change(
    ada: FlaskClient, mailbox: Mailbox, new_client: Callable[[], FlaskClient], app: Flask, taken_effect: bool
) -> None:
    change(ada, NEW)
    verification = token_in(mailbox.wait_for(NEW, VERIFY))
    if taken_effect:
        assert ada.put("/api/email-verification", json={"token": verification}).status_code == 204
        ada.post("/api/password-reset", json={"email": NEW})
        old_token = token_in(mailbox.wait_for(NEW, RESET))
    token = token_in(mailbox.wait_for(ADA, CHANGE_REQUESTED))
    epoch, other = session_epoch(app), new_client()

    assert undo(other, token) == 204
    assert undo(other, token) == 400

    # Sessions, the password, and all links emailed to the new address are invalid.
    assert app.extensions["backline"].redis.keys("session:*") == []
    assert session_epoch(app) != epoch
    assert ada.get("/api/user").status_code == 401
    assert login(other, "ada").status_code == 401
    assert other.put("/api/email-verification", json={"token": verification}).status_code == 400
    if taken_effect:
        body = {"token": old_token, "password": NEW_PASSWORD}
        assert other.put("/api/password-reset", json=body).status_code == 400
    reset = token_in(mailbox.wait_for(ADA, CHANGE_UNDONE))
    body = {"token": reset, "password": NEW_PASSWORD}
    assert other.put("/api/password-reset", json=body).status_code == 204
    signed_in = other.post("/api/login", json={"login": ADA, "password": NEW_PASSWORD})
    assert signed_in.status_code == 200
    assert addresses(other) == (ADA, True, None)
    wait_for_background_work(app)
    assert CHANGED not in {mail["Subject"] for mail in mailbox.mails if mail["To"] == NEW}


@pytest.mark.sqlite_only
def test_first_owner_can_undo_all_later_changes(ada: FlaskClient, mailbox: Mailbox) -> None:
    """A thief who moved the account can undo the next change, but not the owner's undo of the first."""
    change(ada, NEW)
    first = token_in(mailbox.wait_for(ADA, CHANGE_REQUESTED))
    assert verify(ada, mailbox, NEW) == (204, "")
    change(ada, OTHER)
    second = token_in(mailbox.wait_for(NEW, CHANGE_REQUESTED))
    change(ada, "yet-another@example.com")
    third = [token_in(mail) for mail in mailbox.to(NEW, CHANGE_REQUESTED)][-1]

    assert undo(ada, second) == 204
    assert undo(ada, first) == 204
    assert undo(ada, third) == 400
    assert undo(ada, token_in(mailbox.wait_for(ADA, CHANGED))) == 400


@pytest.mark.sqlite_only
def test_second_change_replaces_the_pending_address(ada: FlaskClient, mailbox: Mailbox) -> None:
    change(ada, NEW)
    token = token_in(mailbox.wait_for(NEW, VERIFY))

    assert change(ada, OTHER)["pending_email"] == OTHER

    assert ada.put("/api/email-verification", json={"token": token}).status_code == 400
    change(ada, NEW)  # must not make the first token valid again
    assert ada.put("/api/email-verification", json={"token": token}).status_code == 400
    # The current address cancels the change, without a password.
    canceled = ada.patch("/api/user", json={"email": "ADA@example.com"})
    assert (canceled.status_code, canceled.json["pending_email"]) == (200, None)
    assert verify(ada, mailbox, NEW) == (400, "invalid-token")
    assert addresses(ada) == (ADA, True, None)


@pytest.mark.sqlite_only
def test_verification_of_a_pending_address_can_be_requested_again(
    ada: FlaskClient, mailbox: Mailbox, app: Flask
) -> None:
    change(ada, NEW)

    assert ada.post("/api/email-verification").status_code == 202

    wait_for_background_work(app)
    assert len(mailbox.to(NEW, VERIFY)) == 2
    assert len(mailbox.to(ADA, VERIFY)) == 1
    assert verify(ada, mailbox, NEW) == (204, "")


def test_pending_address_is_not_reserved(
    ada: FlaskClient, mailbox: Mailbox, new_client: Callable[[], FlaskClient]
) -> None:
    change(ada, NEW)
    token = token_in(mailbox.wait_for(NEW, VERIFY))
    register(new_client(), "new")

    response = ada.put("/api/email-verification", json={"token": token})

    assert (response.status_code, slug(response)) == (409, "email-taken")
    assert addresses(ada) == (ADA, True, NEW)


def test_old_address_is_reserved_while_the_change_can_be_undone(
    ada: FlaskClient,
    mailbox: Mailbox,
    new_client: Callable[[], FlaskClient],
    app: Flask,
    sandbox: SandboxClient,
) -> None:
    change(ada, NEW)
    wait_for_background_work(app)
    advance_time(app, sandbox, 6.9 * 86_400)
    assert ada.post("/api/email-verification").status_code == 202
    wait_for_background_work(app)
    assert verify(ada, mailbox, NEW) == (204, "")
    token = token_in(mailbox.wait_for(ADA, CHANGED))
    wait_for_background_work(app)

    # The seven days start again when the change takes effect.
    advance_time(app, sandbox, 6.9 * 86_400)
    body = {"username": "eve", "email": ADA, "password": PASSWORD}
    taken = new_client().post("/api/register", json=body)
    assert (taken.status_code, slug(taken)) == (409, "email-taken")
    advance_time(app, sandbox, 0.2 * 86_400)
    assert new_client().post("/api/register", json=body).status_code == 201
    assert undo(new_client(), token) == 400


@pytest.mark.parametrize("forgotten", [False, True])
def test_new_password_cancels_a_pending_change(ada: FlaskClient, mailbox: Mailbox, forgotten: bool) -> None:
    """The change may have been requested by someone who knew the old password."""
    change(ada, NEW)
    verification = token_in(mailbox.wait_for(NEW, VERIFY))
    if forgotten:
        ada.post("/api/password-reset", json={"email": ADA})
        body = {"token": token_in(mailbox.wait_for(ADA, RESET)), "password": NEW_PASSWORD}
        assert ada.put("/api/password-reset", json=body).status_code == 204
        ada.post("/api/login", json={"login": "ada", "password": NEW_PASSWORD})
    else:
        body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        assert ada.put("/api/user/password", json=body).status_code == 204

    assert ada.put("/api/email-verification", json={"token": verification}).status_code == 400
    assert addresses(ada) == (ADA, True, None)
    assert undo(ada, token_in(mailbox.wait_for(ADA, CHANGE_REQUESTED))) == 204


@pytest.mark.sqlite_only
def test_undo_requires_its_own_token(ada: FlaskClient, mailbox: Mailbox) -> None:
    change(ada, NEW)
    verification = token_in(mailbox.wait_for(NEW, VERIFY))
    token = token_in(mailbox.wait_for(ADA, CHANGE_REQUESTED))

    for wrong in ("", "A" * 43, verification):
        assert undo(ada, wrong) == 400
    confirm = ada.put("/api/email-change", json={"token": token, "decision": "confirm"})
    assert (confirm.status_code, list(confirm.json["errors"])) == (422, ["decision"])
    assert ada.put("/api/email-verification", json={"token": token}).status_code == 400
    assert addresses(ada) == (ADA, True, NEW)


@pytest.mark.settings(SPOTIFY_APPS="both")
@pytest.mark.parametrize("verified", [False, True])
def test_reset_that_verifies_an_address_deletes_the_connection(
    mailbox: Mailbox, client: FlaskClient, sandbox: SandboxClient, verified: bool
) -> None:
    """Someone else may have registered the address, and connected their own Spotify account."""
    register(client, "ada")
    if verified:
        verify(client, mailbox, ADA)
    register_own_application(client, sandbox)
    connect(client, sandbox)
    client.post("/api/password-reset", json={"email": ADA})
    body = {"token": token_in(mailbox.wait_for(ADA, RESET)), "password": NEW_PASSWORD}

    assert client.put("/api/password-reset", json=body).status_code == 204

    client.post("/api/login", json={"login": "ada", "password": NEW_PASSWORD})
    status = client.get("/api/spotify").json["status"]
    assert status == ("connected" if verified else "not_connected")
    assert client.get("/api/spotify/app").json["own"] == verified


@pytest.mark.sqlite_only
def test_owner_is_notified_of_a_new_username(ada: FlaskClient, mailbox: Mailbox, app: Flask) -> None:
    ada.patch("/api/user", json={"username": "ada"})  # unchanged
    ada.patch("/api/user", json={"username": "countess"})

    assert mailbox.wait_for(ADA, "Your username was changed")
    wait_for_background_work(app)
    assert len(mailbox.to(ADA, "Your username was changed")) == 1


@pytest.mark.sqlite_only
@pytest.mark.settings(SPOTIFY_SIGN_IN="true")
def test_emails_contain_nothing_that_a_user_chose(
    mailbox: Mailbox, client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    """Otherwise, anyone could send their own text to any address."""
    ad = "win-1000-eur.example"
    register(client, ad)
    assert verify(client, mailbox, f"{ad}@example.com") == (204, "")
    owner = f"{ad}@example.com"
    connect(client, sandbox)
    with app.app_context(), writing() as db:
        soon = datetime.now(UTC) - timedelta(days=178)
        db.execute(sa.update(AccessToken).values(authorized_at=soon))
    with app.app_context():
        run_maintenance(app)
    client.patch("/api/user", json={"username": f"{ad}.too"})
    change(client, f"{ad}@elsewhere.example")
    assert verify(client, mailbox, f"{ad}@elsewhere.example") == (204, "")
    client.post("/api/password-reset", json={"email": f"{ad}@elsewhere.example"})
    wait_for_background_work(app)
    assert undo(client, token_in(mailbox.wait_for(owner, CHANGED))) == 204
    token = token_in(mailbox.wait_for(owner, CHANGE_UNDONE))
    assert client.put("/api/password-reset", json={"token": token, "password": PASSWORD}).status_code == 204
    client.post("/api/login", json={"login": owner, "password": PASSWORD})
    app.test_cli_runner().invoke(args=["users", "set-email", owner, f"{ad}@third.example"])
    wait_for_background_work(app)
    assert verify(client, mailbox, f"{ad}@third.example") == (204, "")
    create_token(client)
    with app.app_context(), writing() as db:
        user = db.scalars(sa.select(User)).one()
        services().notifications.notify(db, user, MailKind.SPOTIFY_APP_REFUSED)
    wait_for_background_work(app)
    client.delete("/api/user", json={"password": PASSWORD})
    wait_for_background_work(app)

    home = "http://127.0.0.1:5000/api/docs"
    kinds = set()
    for mail in mailbox.mails:
        text = mail.get_content()
        kinds.add(re.sub(r"=[\w-]{43}", "", text))
        assert ad not in f"{mail['Subject']} {text}"
        assert "mira" not in text.lower()
        links = {link.partition("#")[0] for link in re.findall(r"\w+://\S+", text)}
        assert links - {"https://developer.spotify.com/dashboard"} == {home}, text
    assert len(kinds) == len(MailKind), kinds  # each kind of email was sent
