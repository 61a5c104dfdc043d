"""The outbox: emails wait in the database until the mail server accepts them."""

import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra import database
from app.infra.database import db, reading, writing
from app.mail import outbox
from app.models import MailKind, OneTimeToken, OutgoingMail, User
from tests.conftest import MakeApp
from tests.helpers import secret_scanner
from tests.helpers.children import start_child
from tests.helpers.factories import run_maintenance
from tests.helpers.flows import PASSWORD, register
from tests.helpers.mail_server import RESET, VERIFY, Mailbox, running_mailbox, token_in
from tests.helpers.route_matrix import wait_for_background_work, waiting_mails
from tests.helpers.servers import LONG, ROOT, Server, eventually, free_port, process_environment

ADA = "ada@example.com"
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the delays between attempts."""
    monkeypatch.setattr("app.mail.outbox.MIN_RETRY_DELAY", timedelta(milliseconds=20))
    monkeypatch.setattr("app.mail.mailer.POLL_SECONDS", 0.1)
    monkeypatch.setattr("app.mail.mailer.MAX_RECONNECT_DELAY_SECONDS", 0.1)
    monkeypatch.setattr("app.mail.mailer.HEAD_START_SECONDS", 0.01)


def add_emails(user_id: int | None = None, count: int = 1, to: str = ADA) -> None:
    """Add emails to the outbox, as another process would."""
    with writing() as session:
        for _ in range(count):
            outbox.add(session, MailKind.PASSWORD_CHANGED, to=to, user_id=user_id, username="ada")


@on_sqlite
@pytest.mark.processes
def test_emails_survive_killed_processes_and_a_server_outage(
    server: Callable[..., AbstractContextManager[Server]], app: Flask
) -> None:
    port = free_port()
    with server(workers=2, MAIL_URL=f"smtp://127.0.0.1:{port}") as first:
        body = {"username": "ada", "email": ADA, "password": PASSWORD}
        headers = {"X-Requested-With": "test"}
        response = requests.post(f"{first.url}/api/register", json=body, headers=headers, timeout=LONG)
        assert response.status_code == 201
        eventually(lambda: '"mail_not_sent"' in first.log)
        requests.post(f"{first.url}/api/password-reset", json={"email": ADA}, headers=headers, timeout=LONG)
        for pid in first.processes:
            subprocess.run(["kill", "-9", str(pid)], check=False)

    with server(workers=2, MAIL_URL=f"smtp://127.0.0.1:{port}") as second:
        eventually(lambda: '"mail_not_sent"' in second.log)
        let_pass(app, timedelta(minutes=10))
        with running_mailbox(port=port) as (box, _):
            eventually(lambda: len(box.mails) >= 2)
            eventually(lambda: waiting_mails(app) == [])  # so none is sent again

    assert sorted(mail["Subject"] for mail in box.mails) == [VERIFY, RESET]


@on_sqlite
@pytest.mark.usefixtures("short_delays")
@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("DATA", "451 later"),
        ("DATA", "421 going down"),
        ("RCPT", "450 greylisted"),
        ("RCPT", "421 too many"),
        ("MAIL", "550 not from this sender"),
    ],
)
def test_email_is_retried_after_a_temporary_rejection(
    mailbox: Mailbox, client: FlaskClient, app: Flask, command: str, reply: str
) -> None:
    attribute = {
        "DATA": "reject_with",
        "RCPT": "reject_recipients_with",
        "MAIL": "reject_senders_with",
    }[command]
    setattr(mailbox, attribute, reply)
    register(client, "ada")
    eventually(lambda: mailbox.attempts >= 3)
    [waiting] = waiting_mails(app)
    setattr(mailbox, attribute, None)

    mail = mailbox.wait_for(ADA, VERIFY)

    assert client.put("/api/email-verification", json={"token": token_in(mail)}).status_code == 204
    assert mail["Message-ID"].startswith(f"<{waiting.message_id}@")
    wait_for_background_work(app)
    assert len(mailbox.mails) == 1


@on_sqlite
@pytest.mark.usefixtures("short_delays")
@pytest.mark.parametrize(("command", "reply"), [("DATA", "554 no"), ("RCPT", "550 no such user")])
def test_email_is_dropped_after_a_permanent_rejection(
    mailbox: Mailbox,
    client: FlaskClient,
    app: Flask,
    caplog: pytest.LogCaptureFixture,
    command: str,
    reply: str,
) -> None:
    setattr(mailbox, {"DATA": "reject_with", "RCPT": "reject_recipients_with"}[command], reply)

    register(client, "ada")
    wait_for_background_work(app)

    assert mailbox.attempts == 1
    [failure] = [record for record in caplog.records if record.message == "mail_not_sent"]
    assert failure.__dict__["final"] is True


@on_sqlite
@pytest.mark.usefixtures("short_delays")
@pytest.mark.parametrize("reply", [b"554 blocked\r\n", b"421 busy\r\n", b"", b"garbage\r\n"])
def test_email_waits_while_the_server_rejects_connections(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, reply: bytes
) -> None:
    """Such a reply is not about the email, so even a permanent one must not drop it."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        app = make_app(MAIL_URL=f"smtp://127.0.0.1:{port}")
        register(app.test_client(), "ada")
        for _ in range(3):
            connection, _ = listener.accept()
            connection.sendall(reply)
            connection.close()
        eventually(lambda: "mail_not_sent" in caplog.text)
        [mail] = waiting_mails(app)
        assert mail.attempts == 0
        listener.close()
        with running_mailbox(port=port) as (box, _):
            assert box.wait_for(ADA, VERIFY)


@pytest.mark.usefixtures("short_delays")
def test_email_is_sent_once_by_processes_sharing_the_outbox(
    mailbox: Mailbox, app: Flask, another_worker: Flask
) -> None:
    with app.app_context():
        add_emails(count=60)
    for each in (app, another_worker):
        each.extensions["backline"].mailer.start()

    wait_for_background_work(app)

    assert len(mailbox.mails) == 60
    assert len({mail["Message-ID"] for mail in mailbox.mails}) == 60


@on_sqlite
def test_email_of_a_dead_process_is_sent_after_its_lease(mailbox: Mailbox, app: Flask) -> None:
    with app.app_context():
        add_emails()
        claimed = outbox.claim()
        assert claimed is not None
        assert outbox.claim() is None
        with writing() as session:
            session.execute(sa.update(OutgoingMail).values(due_at=database.db_now(session)))
        again = outbox.claim()
        assert again is not None
        assert again.message_id == claimed.message_id

        outbox.schedule_retry(claimed)  # too late: another process has claimed it

        [mail] = waiting_mails(app)
        assert mail.due_at > again.due_at - timedelta(seconds=1)


@on_sqlite
def test_email_with_a_time_from_a_wrong_clock_is_due(app: Flask) -> None:
    with app.app_context():
        add_emails()
        with writing() as session:
            session.execute(
                sa.update(OutgoingMail).values(due_at=database.db_now(session) + timedelta(days=2))
            )

        assert outbox.claim() is not None


@on_sqlite
@pytest.mark.usefixtures("short_delays")
def test_expired_email_is_dropped_and_logged(
    mailbox: Mailbox, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox.reject_with = "451 later"
    with app.app_context():
        add_emails()
        with writing() as session:
            session.execute(sa.update(OutgoingMail).values(expires_at=database.db_now(session)))
        assert not outbox.has_due()

        assert run_maintenance(app)["drop_expired_mails"] == 1

    assert waiting_mails(app) == []
    [record] = [record for record in caplog.records if record.message == "mail_not_sent"]
    assert (record.__dict__["reason"], record.__dict__["final"]) == ("expired", True)


def let_pass(app: Flask, time_passed: timedelta) -> None:
    """Make waiting emails this much older, as if the time had passed."""
    with app.app_context(), writing() as session:
        for mail in session.scalars(sa.select(OutgoingMail)):
            mail.due_at -= time_passed
            mail.expires_at -= time_passed
            mail.created_at -= time_passed


@on_sqlite
@pytest.mark.parametrize(
    ("kind", "least_hours", "most_hours"),
    [(MailKind.PASSWORD_RESET, 0.5, 1), (MailKind.ACCOUNT_DELETED, 95, 96)],
)
def test_attempts_follow_rfc_5321_until_the_email_is_of_no_use(
    app: Flask, kind: MailKind, least_hours: float, most_hours: float
) -> None:
    """Section 4.5.4.1: sooner at first, then every 30 minutes or less often, for four to five days."""
    pauses: list[timedelta] = []
    with app.app_context():
        with writing() as session:
            outbox.add(session, kind, to=ADA)
        while (mail := outbox.claim()) is not None:
            outbox.schedule_retry(mail)
            with reading() as session:
                pauses.append(waiting_mails(app)[0].due_at - database.db_now(session))
            let_pass(app, pauses[-1] + timedelta(seconds=1))

    hours = [pause.total_seconds() / 3600 for pause in pauses]
    assert least_hours < sum(hours[:-1]) < most_hours
    assert len([pause for pause in itertools.accumulate(hours) if pause < 0.5]) >= 6
    assert max(hours) < 0.63
    assert all(later > 0.49 for later in hours[10:])


@on_sqlite
@pytest.mark.usefixtures("short_delays")
def test_email_whose_acceptance_was_lost_is_sent_again_once(
    mailbox: Mailbox, client: FlaskClient, app: Flask
) -> None:
    mailbox.lose_replies = 1
    register(client, "ada")

    wait_for_background_work(app)

    one, other = mailbox.mails
    assert one["Message-ID"] == other["Message-ID"]


@on_sqlite
def test_requested_emails_do_not_fill_the_outbox(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 3)
    with app.app_context(), writing() as session:
        for kind in [MailKind.PASSWORD_RESET] * 5 + [MailKind.PASSWORD_CHANGED] * 5:
            outbox.add(session, kind, to=ADA)

    # Notices are accepted when strangers have requested too many emails.
    assert [mail.kind for mail in waiting_mails(app)] == ["password_reset"] * 3 + ["password_changed"] * 3

    with app.app_context(), writing() as session:
        session.execute(sa.update(OutgoingMail).values(expires_at=database.db_now(session)))
        assert outbox.add(session, MailKind.PASSWORD_RESET, to=ADA) is not None


@pytest.fixture
def no_delivery(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver nothing, as if the mail server were down."""
    monkeypatch.setattr("app.mail.mailer.Mailer.start", lambda *_: None)


@on_sqlite
@pytest.mark.usefixtures("no_delivery")
def test_waiting_emails_contain_no_token_and_end_with_the_account(client: FlaskClient, app: Flask) -> None:
    register(client, "ada")
    client.post("/api/password-reset", json={"email": ADA})
    with app.app_context(), writing() as session:
        session.execute(sa.update(User).values(email_verified_at=database.db_now(session)))
    client.put(
        "/api/user/password", json={"current_password": PASSWORD, "new_password": "another long sentence"}
    )
    assert [mail.kind for mail in waiting_mails(app)] == [
        "email_verification",
        "password_reset",
        "password_changed",
    ]
    with app.app_context(), reading() as session:
        assert list(session.scalars(sa.select(OneTimeToken))) == []

    assert client.delete("/api/user", json={"password": "another long sentence"}).status_code == 204

    [left] = waiting_mails(app)
    assert (left.kind, left.recipient, json.loads(left.arguments)) == (
        "account_deleted",
        ADA,
        {},
    )


@on_sqlite
@pytest.mark.usefixtures("no_delivery")
def test_reset_request_does_the_same_work_for_unknown_addresses(client: FlaskClient, app: Flask) -> None:
    register(client, "ada")
    statements: list[str] = []
    with app.app_context():
        sa.event.listen(
            db.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
        )
    work = []
    for address in (ADA, "bea@example.com"):
        statements.clear()
        assert client.post("/api/password-reset", json={"email": address}).status_code == 202
        work.append(list(statements))

    assert any("INSERT INTO outgoing_mails" in statement for statement in work[0])
    assert work[0] == work[1]
    assert [mail.user_id for mail in waiting_mails(app)][1:] == [None, None]


@on_sqlite
def test_email_of_a_rolled_back_change_is_not_sent(mailbox: Mailbox, app: Flask) -> None:
    mailer = app.extensions["backline"].mailer
    with app.app_context():
        with suppress(RuntimeError), writing() as session:
            mailer.enqueue(session, MailKind.ACCOUNT_DELETED, to=ADA, username="ada")
            session.flush()
            raise RuntimeError
        with writing() as session:
            mailer.enqueue(session, MailKind.ACCOUNT_DELETED, to="bea@example.com", username="bea")

    wait_for_background_work(app)
    assert [mail["To"] for mail in mailbox.mails] == ["bea@example.com"]


@on_sqlite
@pytest.mark.usefixtures("short_delays")
def test_lost_connection_after_quit_is_not_a_failure(
    mailbox: Mailbox,
    app: Flask,
    client: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    quit_commands = []

    async def handle_quit(server: Any, *_: Any) -> str:
        quit_commands.append(1)
        server.transport.abort()
        return "221 bye"

    monkeypatch.setattr(mailbox, "handle_QUIT", handle_quit, raising=False)
    register(client, "ada")

    wait_for_background_work(app)
    eventually(lambda: quit_commands)
    client.post("/api/password-reset", json={"email": ADA})
    mailbox.wait_for(ADA, RESET)

    assert len(mailbox.mails) == 2
    assert "mail_not_sent" not in caplog.text


@on_sqlite
@pytest.mark.usefixtures("short_delays")
def test_broken_email_does_not_block_the_others(
    mailbox: Mailbox, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    with app.app_context():
        add_emails(to="a\n@example.com")
        add_emails()
        app.extensions["backline"].mailer.start()

    assert mailbox.wait_for(ADA, "Your password was changed")
    assert "mail_failed" in caplog.text
    eventually(lambda: len(waiting_mails(app)) == 1)


@on_sqlite
@pytest.mark.processes
def test_scheduler_delivers_emails_left_by_another_process(
    mailbox: Mailbox, env: dict[str, str], app: Flask
) -> None:
    with app.app_context():
        add_emails()
    command = [sys.executable, "-m", "flask", "--app", "wsgi:app", "scheduler"]
    with start_child(
        command, cwd=ROOT, env=process_environment(env), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as scheduler:
        try:
            assert mailbox.wait_for(ADA, "Your password was changed")
        finally:
            scheduler.terminate()
            output = scheduler.communicate(timeout=LONG)
    secret_scanner.record(output[1], "the scheduler's log")
    assert scheduler.returncode == 0
