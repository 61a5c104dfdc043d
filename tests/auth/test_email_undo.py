"""Links that undo a change of address: which of them work, and what an undo deletes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from app.auth import email_tokens
from app.infra.database import reading, writing
from app.models import OutgoingMail, Purpose, User, normalization
from app.user.emails import EmailWriter
from tests.helpers.email_change import (
    ADA,
    NEW,
    NEW_PASSWORD,
    OTHER,
    addresses,
    change,
    register_ada,
    undo,
    verify,
)
from tests.helpers.flows import PASSWORD, another_tab, connect, register, register_own_application
from tests.helpers.mail_server import CHANGE_REQUESTED, CHANGE_UNDONE, CHANGED, VERIFY, Mailbox, token_in
from tests.helpers.route_matrix import wait_for_background_work
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def ada(mailbox: Mailbox, client: FlaskClient) -> FlaskClient:
    """Ada, who is signed in and has verified her address."""
    return register_ada(client, mailbox)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("used", [0, 1])
def test_undo_link_works_in_each_copy_of_an_email(
    ada: FlaskClient, mailbox: Mailbox, app: Flask, monkeypatch: pytest.MonkeyPatch, used: int
) -> None:
    """A mail server can accept an email without our knowledge. Mail programs show one copy of it."""
    monkeypatch.setattr("app.mail.mailer.POLL_SECONDS", 0.1)
    wait_for_background_work(app)
    handle_data = mailbox.handle_DATA

    async def keep_and_complain(*arguments: Any) -> str:
        await handle_data(*arguments)
        return "451 later"

    monkeypatch.setattr("app.mail.outbox.MIN_RETRY_DELAY", timedelta(milliseconds=20))
    monkeypatch.setattr(mailbox, "handle_DATA", keep_and_complain)
    change(ada, NEW)
    mailbox.wait_for(ADA, CHANGE_REQUESTED)
    monkeypatch.setattr(mailbox, "handle_DATA", handle_data)
    wait_for_background_work(app)
    links = [token_in(mail) for mail in mailbox.to(ADA, CHANGE_REQUESTED)]
    assert len(links) > 1

    assert undo(ada, links[-used]) == 204

    assert {undo(ada, token) for token in links} == {400}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_waiting_notice_gets_no_token_of_another_account(
    ada: FlaskClient,
    mailbox: Mailbox,
    app: Flask,
    new_client: Callable[[], FlaskClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQLite reuses the ids of deleted rows."""
    register(bob := new_client(), "bob")
    assert verify(bob, mailbox, "bob@example.com") == (204, "")
    wait_for_background_work(app)
    monkeypatch.setattr("app.mail.mailer.Mailer._deliver_due", lambda _: True)
    change(ada, NEW)
    assert app.test_cli_runner().invoke(args=["users", "set-email", "ada", OTHER]).exit_code == 0
    change(bob, NEW)

    with app.app_context(), reading() as db:
        waiting = list(db.scalars(sa.select(OutgoingMail).order_by(OutgoingMail.id)))
    with app.app_context():
        writer = EmailWriter("https://app.example.com/")
        written = [(mail.recipient, mail.kind) for mail in waiting if writer.write(mail) is not None]

    assert (ADA, "email_change_requested") not in written
    assert ("bob@example.com", "email_change_requested") in written


@pytest.mark.settings(SPOTIFY_APPS="both")
@pytest.mark.parametrize("when", ["before", "after", "replaced"])
def test_undo_deletes_a_connection_made_since_the_change(
    ada: FlaskClient, mailbox: Mailbox, sandbox: SandboxClient, when: str
) -> None:
    """They belong to the owner of the new address, who may be someone else, and so does an application."""
    if when != "after":
        register_own_application(ada, sandbox)
        connect(ada, sandbox)
    change(ada, NEW)
    assert verify(ada, mailbox, NEW) == (204, "")
    if when != "before":
        register_own_application(ada, sandbox)
        connect(ada, sandbox)

    assert undo(ada, token_in(mailbox.wait_for(ADA, CHANGED))) == 204

    reset = token_in(mailbox.wait_for(ADA, CHANGE_UNDONE))
    ada.put("/api/password-reset", json={"token": reset, "password": NEW_PASSWORD})
    ada.post("/api/login", json={"login": "ada", "password": NEW_PASSWORD})
    assert addresses(ada) == (ADA, True, None)
    status = ada.get("/api/spotify").json["status"]
    assert status == ("connected" if when == "before" else "not_connected")
    assert ada.get("/api/spotify/app").json["own"] == (when == "before")


def test_deletion_notifies_every_address_that_could_be_restored(
    ada: FlaskClient, mailbox: Mailbox, app: Flask
) -> None:
    change(ada, NEW)
    assert verify(ada, mailbox, NEW) == (204, "")

    assert ada.delete("/api/user", json={"password": PASSWORD}).status_code == 204

    wait_for_background_work(app)
    reported = [mail["To"] for mail in mailbox.mails if mail["Subject"] == "Your account was deleted"]
    assert sorted(reported) == [ADA, NEW]


@pytest.mark.parametrize("spelling", [ADA, "ada@xn--bcher-kva.example"])  # the other from an earlier release
def test_restored_address_cannot_be_undone_from_the_one_between(
    ada: FlaskClient, mailbox: Mailbox, app: Flask, spelling: str
) -> None:
    """The link sent to the address in between must not restore that address."""
    with app.app_context(), writing() as db:
        db.execute(sa.update(User).values(email=spelling, email_address=spelling))
    change(ada, NEW)
    assert verify(ada, mailbox, NEW) == (204, "")
    sent = len(mailbox.to(spelling, VERIFY))
    change(ada, spelling)
    link = token_in(mailbox.wait_for(NEW, CHANGE_REQUESTED))
    eventually(lambda: len(mailbox.to(spelling, VERIFY)) > sent)
    assert verify(ada, mailbox, spelling) == (204, "")

    assert undo(ada, link) == 400

    assert addresses(ada) == (normalization.address_form(spelling), True, None)
    assert mailbox.to(NEW, CHANGED) == []


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_undo_wins_over_a_verification_it_waited_for(
    ada: FlaskClient, mailbox: Mailbox, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(ada, NEW)
    link = token_in(mailbox.wait_for(ADA, CHANGE_REQUESTED))
    look_up, calls = email_tokens.owner_of, []

    def verify_after_owner_of(db: Session, token: str, purpose: Purpose) -> User:
        """Let the change take effect after the owner is read and before the row is locked."""
        owner = look_up(db, token, purpose)
        calls.append(purpose)
        if calls == [Purpose.EMAIL_CHANGE]:
            with ThreadPoolExecutor() as pool:
                assert pool.submit(verify, another_tab(ada), mailbox, NEW).result() == (204, "")
        return owner

    monkeypatch.setattr(email_tokens, "owner_of", verify_after_owner_of)

    assert undo(ada, link) == 204

    with app.app_context(), reading() as db:
        assert db.scalars(sa.select(User.email)).one() == ADA
