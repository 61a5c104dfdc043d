"""Email addresses: spellings of one mailbox, and the form that email is sent to."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading, writing
from app.models import User, normalization
from tests.helpers.flows import PASSWORD, login, slug
from tests.helpers.mail_server import CHANGE_REQUESTED, RESET, VERIFY, Mailbox, token_in
from tests.helpers.route_matrix import wait_for_background_work

SPELLINGS = [
    "Ada@xn--bcher-kva.example",
    "ada@XN--BCHER-KVA.Example",
    "ADA@bücher.example",
    "ada@BÜCHER\uff0eEXAMPLE",
    "ada@bu\u0308cher.example",
    "\uff41\uff44\uff41\uff20bücher.example",
]


def sign_up(client: FlaskClient, username: str, address: str) -> tuple[int, dict[str, object]]:
    body = {"username": username, "email": address, "password": PASSWORD}
    response = client.post("/api/register", json=body)
    return response.status_code, response.json


@pytest.mark.requirement("H3")
@pytest.mark.parametrize("first", [0, 2])
def test_mailbox_has_one_account_in_all_spellings_of_its_domain(
    mailbox: Mailbox, new_client: Callable[[], FlaskClient], app: Flask, first: int
) -> None:
    status, user = sign_up(new_client(), "ada", SPELLINGS[first])
    assert (status, user["email"]) == (201, "ada@bücher.example")

    for spelling in [*SPELLINGS, "ada@bücher\u3002example", "ada@bücher.example."]:
        assert login(new_client(), spelling).status_code == 200, spelling
    for spelling in SPELLINGS:
        status, problem = sign_up(new_client(), "other", spelling)
        assert (status, problem["type"]) == (409, "/problems/email-taken"), spelling
    assert new_client().post("/api/password-reset", json={"email": SPELLINGS[3]}).status_code == 202
    wait_for_background_work(app)
    # A relay without SMTPUTF8 accepts A-labels too.
    local = SPELLINGS[first].partition("@")[0]
    assert mailbox.recipients == [f"{local}@xn--bcher-kva.example"] * 2


@pytest.mark.requirement("H3")
def test_wrong_passwords_count_together_for_all_spellings(client: FlaskClient) -> None:
    logins = [SPELLINGS[number % len(SPELLINGS)] for number in range(11)]

    bodies = [{"login": name, "password": "not the password"} for name in logins]
    assert [client.post("/api/login", json=body).status_code for body in bodies] == [401] * 10 + [429]


@pytest.mark.requirement("H3")
def test_password_must_not_be_a_spelling_of_the_address(client: FlaskClient) -> None:
    for password in ("ada@xn--bcher-kva.example", "ada@bücher.example1"):
        body = {"username": "countess", "email": SPELLINGS[0], "password": password}
        response = client.post("/api/register", json=body)
        assert (response.status_code, list(response.json["errors"])) == (422, ["password"])


def test_emails_go_to_the_address_as_it_was_entered(
    mailbox: Mailbox, client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    entered = "Ada.Lovelace@example.com"
    status, user = sign_up(client, "ada", f" {entered.replace('example', 'EXAMPLE')} ")
    assert (status, user["email"]) == (201, "ada.lovelace@example.com")
    token = token_in(mailbox.wait_for(entered, VERIFY))
    assert client.put("/api/email-verification", json={"token": token}).status_code == 204

    new_client().post("/api/password-reset", json={"email": "ADA.LOVELACE@example.com"})
    change = {"email": "Countess@Example.com", "current_password": PASSWORD, "username": "countess"}
    assert client.patch("/api/user", json=change).status_code == 200
    undo = token_in(mailbox.wait_for(entered, CHANGE_REQUESTED))
    token = token_in(mailbox.wait_for("Countess@example.com", VERIFY))
    assert client.put("/api/email-verification", json={"token": token}).status_code == 204
    assert client.put("/api/email-change", json={"token": undo, "decision": "undo"}).status_code == 204
    wait_for_background_work(app)

    assert set(mailbox.recipients) == {entered, "Countess@example.com"}
    assert mailbox.mails[-1]["To"] == entered  # the restored address has its original case
    exported = client.post("/api/login", json={"login": "countess", "password": PASSWORD})
    assert exported.status_code == 401


def test_accounts_of_earlier_releases_are_found_by_both_spellings(
    mailbox: Mailbox, app: Flask, new_client: Callable[[], FlaskClient]
) -> None:
    """They stored the domain as it was typed, so one mailbox can have two accounts."""
    sign_up(new_client(), "ada", "ada@example.com")
    sign_up(new_client(), "grace", "grace@example.com")
    old = {"ada": "ada@xn--bcher-kva.example", "grace": "grace@bücher.example"}
    with app.app_context(), writing() as db:
        for username, email in old.items():
            values = {"email": email, "email_address": None}
            db.execute(sa.update(User).where(User.username == username).values(**values))
    wait_for_background_work(app)

    for username in old:
        for domain in ("xn--bcher-kva", "bücher"):
            response = login(new_client(), f"{username}@{domain}.example")
            assert (response.status_code, response.json["username"]) == (200, username)
            status, problem = sign_up(new_client(), "other", f"{username}@{domain}.example")
            assert (status, problem["type"]) == (409, "/problems/email-taken")
    with app.app_context(), writing() as db:
        alternative = {"email": "ada@bücher.example", "email_address": None}
        db.execute(sa.update(User).where(User.username == "grace").values(**alternative))
    assert login(new_client(), "ada@xn--bcher-kva.example").json["username"] == "ada"
    assert login(new_client(), "ada@bücher.example").json["username"] == "grace"
    new_client().post("/api/password-reset", json={"email": "ada@bücher.example"})
    mailbox.wait_for("ada@xn--bcher-kva.example", RESET)


def test_emails_follow_an_address_changed_by_an_earlier_release(
    mailbox: Mailbox, app: Flask, client: FlaskClient
) -> None:
    """An earlier release may run next to this one. It does not know the column `email_address`."""
    sign_up(client, "ada", "Ada@example.com")
    with app.app_context(), writing() as db:
        db.execute(sa.update(User).values(email="new@example.com"))

    assert client.post("/api/email-verification").status_code == 202

    mailbox.wait_for("new@example.com", VERIFY)
    with app.app_context(), reading() as db:
        assert db.scalars(sa.select(User.email_address)).one() == "Ada@example.com"


@pytest.mark.requirement("H3")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_domain_that_idna_does_not_allow_is_rejected(client: FlaskClient) -> None:
    domains = [
        "xn--.example",
        "xn--a.example",
        "xn--999999b.example",
        "xn--bücher.example",
        "xn--abc-.example",
    ]
    for domain in [
        *domains,
        "xn--i-7iq.ws",
        "i❤.ws",
        "\u0308a.example",
        "bü\u00adcher.example",
        f"{'ü' * 60}.de",
        f"{'a' * 64}.de",
        "exam\u200dple.com",
    ]:
        response = client.post(
            "/api/register", json={"username": "ada", "email": f"ada@{domain}", "password": PASSWORD}
        )
        assert (response.status_code, slug(response)) == (422, "validation-error"), domain
        assert list(response.json["errors"]) == ["email"]


@pytest.mark.requirement("H3")
def test_address_has_one_form_to_compare_and_one_to_send_to() -> None:
    for entered, normal, sent in (
        ("Ada@Example.com", "ada@example.com", "Ada@example.com"),
        ("x@straße.example", "x@straße.example", "x@xn--strae-oqa.example"),
        ("x@STRASSE.example", "x@strasse.example", "x@strasse.example"),
        ("x@bücher.xn--p1ai", "x@bücher.рф", "x@xn--bcher-kva.xn--p1ai"),
        ("x@ශ්\u200dරී.lk", "x@ශ්\u200dරී.lk", "x@xn--10cl1a0b660p.lk"),
        ("x@a_b.a--b.example", "x@a_b.a--b.example", "x@a_b.a--b.example"),
        ("Zoe\u0308@example.com", "zoë@example.com", "Zoë@example.com"),
    ):
        assert normalization.is_email(entered)
        assert (normalization.address_form(entered), normalization.sending_form(entered)) == (normal, sent)
        assert normalization.address_form(sent) == normalization.address_form(normal) == normal
        assert normalization.sending_form(sent) == sent
