"""Tokens that are sent by email: password resets and email verification."""

import re
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from app.auth import email_tokens
from app.infra.database import reading, writing
from app.models import OneTimeToken, Purpose, User
from tests.conftest import MakeApp
from tests.helpers.factories import advance_time, run_maintenance
from tests.helpers.flows import PASSWORD, login, register, slug
from tests.helpers.mail_server import RESET, VERIFY, Mailbox, token_in
from tests.helpers.route_matrix import wait_for_background_work
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually

pytestmark = pytest.mark.slow

NEW_PASSWORD = "another sentence, and longer"
ADA = "ada@example.com"


@pytest.fixture
def ada(mailbox: Mailbox, client: FlaskClient) -> FlaskClient:
    """Ada, who is signed in and has received the email of her registration."""
    register(client, "ada")
    mailbox.wait_for(ADA, VERIFY)
    return client


def request_reset(client: FlaskClient, address: str = ADA) -> int:
    return client.post("/api/password-reset", json={"email": address}).status_code


def reset(client: FlaskClient, token: str, password: str = NEW_PASSWORD) -> tuple[int, str]:
    response = client.put("/api/password-reset", json={"token": token, "password": password})
    return response.status_code, "" if response.status_code == 204 else slug(response)


def stored_tokens(app: Flask) -> list[OneTimeToken]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(OneTimeToken)))


# --- password resets ----------------------------------------------------------------------------


def test_password_reset_replaces_a_forgotten_password(
    ada: FlaskClient, mailbox: Mailbox, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    client = new_client()

    assert request_reset(client, " ADA@example.com") == 202
    token = token_in(mailbox.wait_for(ADA, RESET))
    assert reset(client, token) == (204, "")

    assert app.extensions["backline"].redis.keys("session*:*") == []
    assert ada.get("/api/user").status_code == 401
    assert login(new_client(), "ada").status_code == 401
    again = new_client().post("/api/login", json={"login": "ada", "password": NEW_PASSWORD})
    assert (again.status_code, again.json["email_verified"]) == (200, True)
    assert mailbox.wait_for(ADA, "Your password was changed")


@pytest.mark.sqlite_only
def test_reset_link_leads_to_the_frontend_with_a_fragment(ada: FlaskClient, mailbox: Mailbox) -> None:
    request_reset(ada)

    mail = mailbox.wait_for(ADA, RESET)

    assert re.search(r"http://127\.0\.0\.1:5000/api/docs#password-reset=[\w-]{43}\s", mail.get_content())
    assert mail["From"] == "no-reply@127.0.0.1"
    assert mail["Auto-Submitted"] == "auto-generated"


def test_token_works_once(ada: FlaskClient, mailbox: Mailbox) -> None:
    request_reset(ada)
    token = token_in(mailbox.wait_for(ADA, RESET))

    assert reset(ada, token) == (204, "")
    assert reset(ada, token) == (400, "invalid-token")


def test_redeemed_token_revokes_the_others(ada: FlaskClient, mailbox: Mailbox) -> None:
    request_reset(ada)
    first = token_in(mailbox.wait_for(ADA, RESET))
    request_reset(ada)
    eventually(lambda: len(mailbox.to(ADA, RESET)) == 2)

    assert reset(ada, first) == (204, "")
    assert reset(ada, token_in(mailbox.wait_for(ADA, RESET))) == (400, "invalid-token")


def test_reset_token_expires_after_an_hour(
    ada: FlaskClient, mailbox: Mailbox, app: Flask, sandbox: SandboxClient
) -> None:
    request_reset(ada)
    token = token_in(mailbox.wait_for(ADA, RESET))
    advance_time(app, sandbox, 3300)
    with app.app_context():
        run_maintenance(app)
    assert len(stored_tokens(app)) == 2
    assert reset(ada, token, "password1") == (422, "validation-error")  # the token is still valid

    advance_time(app, sandbox, 600)

    assert reset(ada, token) == (400, "invalid-token")
    with app.app_context():
        run_maintenance(app)
    assert [row.purpose for row in stored_tokens(app)] == ["email_verification"]


@pytest.mark.sqlite_only
def test_token_is_for_the_address_it_was_sent_to(ada: FlaskClient, mailbox: Mailbox) -> None:
    request_reset(ada)
    token = token_in(mailbox.wait_for(ADA, RESET))
    ada.patch("/api/user", json={"email": "new@example.com", "current_password": PASSWORD})

    assert reset(ada, token) == (400, "invalid-token")


@pytest.mark.sqlite_only
def test_password_change_revokes_reset_tokens(ada: FlaskClient, mailbox: Mailbox) -> None:
    """Someone who can read the mailbox must not undo what its owner has done."""
    request_reset(ada)
    token = token_in(mailbox.wait_for(ADA, RESET))
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert ada.put("/api/user/password", json=body).status_code == 204

    assert reset(ada, token, "yet another sentence") == (400, "invalid-token")


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)  # SQLite locks the whole database
@pytest.mark.parametrize("changed", ["email", "password"])
def test_redeeming_sees_changes_made_before_its_lock(
    ada: FlaskClient, mailbox: Mailbox, app: Flask, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    request_reset(ada)
    reset_token = token_in(mailbox.wait_for(ADA, RESET))
    verification = token_in(mailbox.wait_for(ADA, VERIFY))
    owner_of, calls = email_tokens.owner_of, []

    def change_after_first_read(db: Session, token: str, purpose: Purpose) -> User:
        found = owner_of(db, token, purpose)
        calls.append(found)
        if len(calls) == 1 + (changed == "password"):  # resetting reads the owner once before
            with writing() as other:
                new = {"email": "new@example.com"} if changed == "email" else {"session_epoch": 5}
                other.execute(sa.update(User).values(**new))
        return found

    monkeypatch.setattr(email_tokens, "owner_of", change_after_first_read)
    if changed == "email":
        assert ada.put("/api/email-verification", json={"token": verification}).status_code == 400
    else:
        assert reset(ada, reset_token) == (204, "")

    with app.app_context(), reading() as db:
        user = db.scalars(sa.select(User)).one()
    assert user.email_verified is (changed == "password")
    assert user.session_epoch != 5


@pytest.mark.sqlite_only
def test_token_is_for_one_purpose(ada: FlaskClient, mailbox: Mailbox) -> None:
    token = token_in(mailbox.wait_for(ADA, VERIFY))

    assert reset(ada, token) == (400, "invalid-token")
    assert ada.put("/api/email-verification", json={"token": token}).status_code == 204


def test_unknown_token_is_rejected(client: FlaskClient) -> None:
    for token in ("", "x", "A" * 43, "\u0000", "A" * 200, "' OR 1=1 --"):
        assert reset(client, token) == (400, "invalid-token"), token
        response = client.put("/api/email-verification", json={"token": token})
        assert (response.status_code, slug(response)) == (400, "invalid-token"), token


def test_database_stores_only_hashes_of_tokens(ada: FlaskClient, mailbox: Mailbox, app: Flask) -> None:
    request_reset(ada)
    token = token_in(mailbox.wait_for(ADA, RESET))

    for row in stored_tokens(app):
        assert token not in {row.token_hash, row.email, row.purpose}


@pytest.mark.sqlite_only
def test_rejected_password_does_not_use_up_the_token(ada: FlaskClient, mailbox: Mailbox) -> None:
    request_reset(ada)
    token = token_in(mailbox.wait_for(ADA, RESET))

    assert reset(ada, token, "spotify123") == (422, "validation-error")
    assert reset(ada, token, "ada@example.com") == (422, "validation-error")
    assert reset(ada, token) == (204, "")


@pytest.mark.sqlite_only
def test_password_reset_forgets_wrong_passwords(
    ada: FlaskClient, mailbox: Mailbox, new_client: Callable[[], FlaskClient]
) -> None:
    client = new_client()
    for _ in range(11):
        last = client.post("/api/login", json={"login": "ada", "password": "not the password"})
    assert last.status_code == 429
    request_reset(client)

    reset(client, token_in(mailbox.wait_for(ADA, RESET)))

    assert client.post("/api/login", json={"login": "ada", "password": NEW_PASSWORD}).status_code == 200


@pytest.mark.requirement("A7")
@pytest.mark.sqlite_only
def test_reset_response_does_not_reveal_accounts(ada: FlaskClient, mailbox: Mailbox) -> None:
    responses = [
        ada.post("/api/password-reset", json={"email": address})
        for address in (ADA, "nobody@example.com", "nobody@elsewhere.example")
    ]

    for response in responses:
        assert (response.status_code, response.data) == (202, b"")
        assert "Set-Cookie" not in response.headers
    assert len({str(sorted(response.headers.keys())) for response in responses}) == 1
    mailbox.wait_for(ADA, RESET)
    assert [mail["To"] for mail in mailbox.mails] == [ADA] * 2


@pytest.mark.sqlite_only
def test_mailbox_gets_at_most_five_reset_emails_an_hour(
    ada: FlaskClient, mailbox: Mailbox, app: Flask
) -> None:
    # The response does not reveal that there were too many.
    assert [request_reset(ada) for _ in range(8)] == [202] * 8

    wait_for_background_work(app)
    assert len(mailbox.to(ADA, RESET)) == 5


@pytest.mark.sqlite_only
def test_client_address_may_request_fifty_emails_an_hour(ada: FlaskClient) -> None:
    assert {request_reset(ada) for _ in range(8)} == {202}
    assert {request_reset(ada, f"person{number}@example.com") for number in range(42)} == {202}
    response = ada.post("/api/password-reset", json={"email": ADA})
    assert (response.status_code, slug(response)) == (429, "too-many-attempts")
    assert 3000 < int(response.headers["Retry-After"]) <= 3600


# --- email verification -------------------------------------------------------------------------


def test_registration_email_verifies_the_address(ada: FlaskClient, mailbox: Mailbox) -> None:
    token = token_in(mailbox.wait_for(ADA, VERIFY))
    assert ada.get("/api/user").json["email_verified"] is False

    statuses = [ada.put("/api/email-verification", json={"token": token}).status_code for _ in range(2)]

    assert statuses == [204, 400]
    assert ada.get("/api/user").json["email_verified"] is True


@pytest.mark.sqlite_only
def test_verification_email_can_be_requested_again(ada: FlaskClient, mailbox: Mailbox, app: Flask) -> None:
    assert ada.post("/api/email-verification").status_code == 202
    eventually(lambda: len(mailbox.to(ADA, VERIFY)) == 2)
    ada.put("/api/email-verification", json={"token": token_in(mailbox.wait_for(ADA, VERIFY))})

    assert ada.post("/api/email-verification").status_code == 202  # there is nothing left to verify
    assert stored_tokens(app) == []


@pytest.mark.sqlite_only
def test_too_many_verification_requests_are_rejected(ada: FlaskClient) -> None:
    request_reset(ada)  # counted separately, because anyone can do this
    statuses = [ada.post("/api/email-verification").status_code for _ in range(5)]

    assert statuses == [202] * 4 + [429]  # the registration sent the first email


@pytest.mark.sqlite_only
def test_unverified_address_gets_no_notices(ada: FlaskClient, mailbox: Mailbox, app: Flask) -> None:
    """Anyone can enter any address, and send emails to it this way."""
    for address in ("stranger@example.com", ADA, "stranger@example.com"):
        change = {"email": address, "current_password": PASSWORD}
        assert ada.patch("/api/user", json=change).status_code == 200
    ada.delete("/api/user", json={"password": PASSWORD})

    wait_for_background_work(app)
    assert {mail["Subject"] for mail in mailbox.mails} == {VERIFY}


def test_account_deletion_is_confirmed_and_revokes_tokens(
    ada: FlaskClient, mailbox: Mailbox, new_client: Callable[[], FlaskClient]
) -> None:
    ada.put("/api/email-verification", json={"token": token_in(mailbox.wait_for(ADA, VERIFY))})
    request_reset(ada)
    token = token_in(mailbox.wait_for(ADA, RESET))

    ada.delete("/api/user", json={"password": PASSWORD})

    assert mailbox.wait_for(ADA, "Your account was deleted")
    assert reset(ada, token) == (400, "invalid-token")


@pytest.mark.sqlite_only
def test_address_that_a_header_would_decode_is_rejected(mailbox: Mailbox, client: FlaskClient) -> None:
    body = {"username": "ada", "email": "=?utf-8?q?ceo?=@corp.example", "password": PASSWORD}

    response = client.post("/api/register", json=body)

    assert (response.status_code, list(response.json["errors"])) == (422, ["email"])


PRODUCTION = {
    "APP_ENV": "production",
    "ALLOW_INSECURE": "sqlite,redis",
    "SECRET_KEY": "Zm9vYmFyLXF1dXgtMTIzNDU",
    "TOKEN_ENCRYPTION_KEYS": "7wXoTzJ1mRk3vGd9PqYcB5sLhUeN0aZfWi2tKxQ8ypM=",
    "TRUSTED_HOSTS": "api.example.com",
    "FRONTEND_URL": "https://app.example.com/",
    "CORS_ORIGINS": "https://app.example.com",
    "SPOTIFY_REDIRECT_URI": "https://api.example.com/api/spotify/authorize",
    "SPOTIFY_CLIENT_ID": "0123456789abcdef0123456789abcdef",
    "SPOTIFY_CLIENT_SECRET": "9c41f07be2d85a3610fe27c9b84d5a3e",
}


@pytest.mark.sqlite_only
def test_reset_request_fails_in_production_without_a_mail_server(
    make_app: MakeApp, capsys: pytest.CaptureFixture[str]
) -> None:
    client = make_app(**PRODUCTION).test_client()

    response = client.post("/api/password-reset", json={"email": ADA}, base_url="https://api.example.com")

    assert (response.status_code, slug(response)) == (503, "service-unavailable")
    assert "mail" in response.json["detail"]
    assert "email to" not in capsys.readouterr().err
