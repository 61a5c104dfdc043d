"""Sending emails through a mail server or to the console."""

import gc
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from flask import Flask

from app.doctor import checks
from app.doctor.result import Status
from app.mail import transport
from app.mail.transport import ConsoleTransport, Email
from app.models import OutgoingMail
from config import Config
from tests.conftest import SETTINGS, MakeApp
from tests.helpers.flows import register
from tests.helpers.mail_server import VERIFY, running_mailbox
from tests.helpers.route_matrix import waiting_mails
from tests.helpers.servers import LONG, ROOT, eventually, make_certificate, process_environment

ADA = "ada@example.com"


@pytest.mark.processes
@pytest.mark.sqlite_only
def test_process_ends_although_the_mail_server_hangs(env: dict[str, str], app: Flask) -> None:
    program = (
        "from wsgi import app\n"
        "from app.infra.database import writing\n"
        "from app.models import MailKind\n"
        "with app.app_context(), writing() as db:\n"
        "    for number in range(20):\n"
        "        app.extensions['backline'].mailer.enqueue(\n"
        "            db, MailKind.PASSWORD_CHANGED, to=f'{number}@example.com', username='ada')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**process_environment(env), "MAIL_URL": f"smtp://127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            timeout=150,  # 20 emails at 10 s each would take 200 s
            check=False,
        )

    assert done.returncode == 0, done.stderr
    assert len(waiting_mails(app)) == 20


def test_responses_do_not_wait_for_the_mail_server(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_app(MAIL_URL="smtp://127.0.0.1:1").test_client()

    register(client, "ada")

    response = client.post("/api/password-reset", json={"email": ADA})

    assert response.status_code == 202
    eventually(lambda: "mail_not_sent" in caplog.text)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_smtp_password_is_sent_in_cleartext_only_over_loopback(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    elsewhere: bool,
) -> None:
    received: list[LoginPassword] = []

    def authenticate(*arguments: Any) -> AuthResult:
        received.append(arguments[-1])
        return AuthResult(success=True)

    options = {"auth_require_tls": False, "auth_required": True, "authenticator": authenticate}
    with running_mailbox(**options) as (box, url):
        host = NOT_LOOPBACK if elsewhere else "127.0.0.1"
        signed_in = url.replace("//127.0.0.1", f"//us%40example.com:hunter%2Fhunter2@{host}")
        register(make_app(MAIL_URL=signed_in, ALLOW_INSECURE="mail").test_client(), "ada")
        eventually(lambda: box.mails or "mail_not_sent" in caplog.text)

    assert bool(box.mails) is not elsewhere
    assert {(login.login, login.password) for login in received} == (
        set() if elsewhere else {(b"us@example.com", b"hunter/hunter2")}
    )


NOT_LOOPBACK = "0.0.0.0"  # noqa: S104 - leads to this machine, but does not count as loopback


@pytest.mark.parametrize("settings", [{}, {"ALLOW_INSECURE": "mail"}], ids=["rejected", "allowed"])
def test_emails_are_not_sent_in_cleartext_over_a_network(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, settings: dict[str, str]
) -> None:
    with running_mailbox() as (box, url):
        client = make_app(MAIL_URL=url.replace("127.0.0.1", NOT_LOOPBACK), **settings).test_client()
        register(client, "ada")
        eventually(lambda: box.mails or "mail_not_sent" in caplog.text)
        with client.application.app_context():
            results = checks.run_checks(client.application.extensions["backline"])
            [result] = [each for each in results if each.summary.startswith("mail")]

    assert bool(box.mails) is bool(settings)
    assert result.status == (Status.OK if settings else Status.FAILURE)
    assert ("ALLOW_INSECURE=mail" in result.advice) is not bool(settings)


# aiosmtpd does not close the connection whose TLS handshake failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("trusted", [True, False])
def test_starttls_requires_a_trusted_certificate(
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    trusted: bool,
) -> None:
    make_certificate("openssl", tmp_path, "IP:127.0.0.1")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    with running_mailbox(tls_context=context, require_starttls=True) as (box, url):
        register(make_app(MAIL_URL=url).test_client(), "ada")
        eventually(lambda: box.mails or "mail_not_sent" in caplog.text)

    gc.collect()  # raises the warning here, where it is ignored
    assert bool(box.mails) is trusted


@pytest.mark.parametrize(
    ("step", "piece", "pause", "limit"),
    [
        (b"", b"220-wait\r\n", 0.05, "CONNECT_SECONDS"),
        (b"EHLO", b"2", 0.05, "CONNECT_SECONDS"),
        (b"EHLO", b"250-more\r\n", 0, "MAX_REPLY_BYTES"),
        (b".\r\n", b"250-", 0.05, "SEND_SECONDS"),
    ],
    ids=["greeting", "slow bytes", "fast lines", "email"],
)
def test_mail_server_whose_reply_never_ends_is_given_up(
    monkeypatch: pytest.MonkeyPatch, step: bytes, piece: bytes, pause: float, limit: str
) -> None:
    if limit != "MAX_REPLY_BYTES":
        monkeypatch.setattr(transport, limit, 0.5)
    outcome: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = listener, step, piece, pause, outcome
        thread = threading.Thread(target=reply_without_end, args=arguments, daemon=True)
        thread.start()
        config = Config.from_env({**SETTINGS, "MAIL_URL": f"smtp://127.0.0.1:{listener.getsockname()[1]}"})
        mail = OutgoingMail(created_at=datetime.now(UTC), message_id="1")
        with (
            pytest.raises((OSError, smtplib.SMTPException)),
            transport.SmtpTransport(config).connect() as send,
        ):
            send(Email(ADA, "Hello", "The text.\n"), mail)
        thread.join(LONG)

    assert outcome == ["the client closed the connection"]


OK = b"250 ok\r\n"
REPLIES = {b"": b"220 hi\r\n", b"EHLO": OK, b"MAIL": OK, b"RCPT": OK, b"DATA": b"354 go\r\n"}


def reply_without_end(
    listener: socket.socket, step: bytes, piece: bytes, pause: float, outcome: list[str]
) -> None:
    """Reply like a mail server up to one step. Send pieces of that reply for as long as the client waits."""
    connection, _ = listener.accept()
    ends = time.monotonic() + LONG
    with connection, connection.makefile("rb") as commands:
        command = b""
        try:
            while command != step:
                connection.sendall(REPLIES.get(command, b""))
                command = commands.readline()[:4].upper()
            while time.monotonic() < ends:
                connection.sendall(piece)
                time.sleep(pause)
        except OSError:
            outcome.append("the client closed the connection")


def test_email_is_printed_in_development_without_a_mail_server(make_app: MakeApp) -> None:
    client = make_app().test_client()
    printed = client.application.extensions["backline"].mailer.transport.stream
    register(client, "ada")

    eventually(lambda: "#email-verification=" in printed.getvalue())
    assert f"email to {ADA}: {VERIFY}" in printed.getvalue()


def test_console_transport_prints_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleTransport().connect() as send:
        send(Email(ADA, "Hello", "The text.\n"), OutgoingMail())

    assert f"email to {ADA}: Hello" in capsys.readouterr().err
