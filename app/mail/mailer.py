"""Sending mail: a thread delivers what waits in the outbox, so that no response waits for a mail server."""

import atexit
import json
import logging
import random
import smtplib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import unquote, urlsplit

from flask import Flask, current_app
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.infra import sockets
from app.mail import outbox
from app.models import MailKind, OutgoingMail
from config import Config, is_loopback

log = logging.getLogger(__name__)

SECONDS = 10  # for each step of connecting to the mail server
# For each step of handing over a mail. Servers scan a mail before they accept it; giving up on them too
# early would send it twice. All five steps must end before the lease that `app.mail.outbox` has on the mail.
HANDOVER_SECONDS = 100
MAILS_PER_CONNECTION = 50  # some servers accept no more
HEAD_START_SECONDS = 0.1
POLL_SECONDS = 5.0  # mails from other processes, and those that were postponed
LONGEST_PAUSE_SECONDS = 30.0  # between attempts to reach a mail server that is away
CLOSE_SECONDS = 5.0

# Replies that are about our settings rather than about the mail (RFC 4954 section 6).
_SIGN_IN_REPLIES = (530, 534, 535, 538)


@dataclass(frozen=True)
class Mail:
    to: str
    subject: str
    text: str


class InsecureConnection(smtplib.SMTPException):
    """The server offers no encryption. The message says what to do."""


class Mailer:
    """Sends mails through MAIL_URL; in development without one it prints them.

    `write` makes the text of a mail that is being delivered, or returns None if it is no longer needed.
    """

    def __init__(self, config: Config, write: Callable[[OutgoingMail], Mail | None]) -> None:
        self._url = urlsplit(config.mail_url)
        self._from = config.mail_from
        self._write = write
        self._allows_cleartext = "mail" in config.allow_insecure or is_loopback(self._url.hostname)
        self.prints = not config.mail_url and config.app_env == "development"
        self._starting, self._closing, self._wake = threading.Lock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def works(self) -> bool:
        """Whether this server can send mail at all."""
        return self.prints or bool(self._url.hostname)

    def examine(self) -> None:
        """Connect to the mail server, and sign in.

        Raises:
            OSError, smtplib.SMTPException: mails could not be sent.
        """
        with self._connection():
            pass

    def enqueue(
        self, db: Session, kind: MailKind, *, to: str, user_id: int | None = None, **arguments: str | int
    ) -> None:
        """Store a mail in the caller's transaction. Delivery begins when that is committed.

        `arguments` are what else the text needs. They are stored in the clear, so they must not be secret.
        A mail with a `user_id` is deleted together with the account.
        """
        if not self.works:
            log.error("mail_not_sent", extra={"reason": "no MAIL_URL", "final": True})
            return
        if outbox.add(db, kind, to=to, user_id=user_id, **arguments) is None:
            return
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
        event.listen(db, "after_commit", lambda _: self.start(app), once=True)

    def start(self, app: Flask) -> None:
        """Deliver what is due now, and from now on, in a thread."""
        self._wake.set()
        with self._starting:
            if self._thread is None and self.works and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, args=(app,), name="mail", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def close(self) -> None:
        """Finish the mail that is being sent. The others stay in the outbox."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _run(self, app: Flask) -> None:
        failures = 0
        while not self._closing.is_set():
            if failures:
                longest = min(2.0 ** min(failures - 1, 10), LONGEST_PAUSE_SECONDS)
                self._closing.wait(longest * random.uniform(0.5, 1))
            else:
                self._wake.wait(POLL_SECONDS * random.uniform(0.5, 1))
            self._wake.clear()
            # Respond first: delivering would slow the response down, and so tell that there is a mail.
            self._closing.wait(HEAD_START_SECONDS)
            with app.app_context():
                failures = 0 if self._deliver_due() else failures + 1

    def _deliver_due(self) -> bool:
        """Deliver all mails that are due. Returns whether the database and the mail server were there."""
        try:
            while outbox.is_waiting() and not self._closing.is_set():
                # Connect before claiming a mail: while the server is away, no mail's pause grows.
                with self._connection() as server:
                    self._deliver_over(server)
        except (OSError, smtplib.SMTPException) as error:
            _log_failure(error)
            return False
        except SQLAlchemyError as error:
            log.warning("outbox_unavailable", extra={"reason": type(error).__name__})
            return False
        except Exception:
            log.exception("mail_failed")
            return False
        return True

    def _deliver_over(self, server: smtplib.SMTP | None) -> None:
        """Deliver mails over a connection until it, or the list of them, ends."""
        for _ in range(MAILS_PER_CONNECTION):
            mail = None if self._closing.is_set() else outbox.claim()
            if mail is None or not self._deliver(mail, server):
                return

    def _deliver(self, mail: OutgoingMail, server: smtplib.SMTP | None) -> bool:
        """Deliver a claimed mail. Returns whether the connection is still good."""
        try:
            letter = self._write(mail)
            if letter is not None:
                self._hand_over(letter, mail, server)
        except SQLAlchemyError:
            raise
        except (OSError, smtplib.SMTPException) as error:
            final = _is_final(error)
            _log_failure(error, final=final)
            (outbox.remove if final else outbox.postpone)(mail)
            return False
        except Exception:
            log.exception("mail_failed")
            outbox.postpone(mail)
            return False
        if letter is not None:
            log.info("mail_sent")
        outbox.remove(mail)
        return True

    def _hand_over(self, letter: Mail, mail: OutgoingMail, server: smtplib.SMTP | None) -> None:
        if server is None:
            sys.stderr.write(f"\n--- mail to {letter.to}: {letter.subject} ---\n{letter.text}--- end ---\n\n")
            return
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._from, letter.to, letter.subject
        message["Date"] = format_datetime(mail.created_at)
        message["Message-ID"] = f"<{mail.message_id}@{self._from.partition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies, please
        message.set_content(letter.text)
        # To the address as it is, not to what may be read into a header of that text.
        server.send_message(message, to_addrs=[letter.to])

    @contextmanager
    def _connection(self) -> Iterator[smtplib.SMTP | None]:
        """Connect to the mail server, encrypted and signed in. None where mails are printed."""
        if self.prints:
            yield None
            return
        server = self._connect()
        try:
            _set_timeout(server, HANDOVER_SECONDS)
            yield server
            # A mail that was accepted is sent, whatever the server replies to QUIT.
            with suppress(OSError, smtplib.SMTPException):
                _set_timeout(server, SECONDS)
                server.quit()
        finally:
            server.close()

    def _connect(self) -> smtplib.SMTP:
        host, context = self._url.hostname or "", ssl.create_default_context()
        if self._url.scheme == "smtps":
            server: smtplib.SMTP = _SmtpOverTls(host, self._url.port or 465, timeout=SECONDS, context=context)
        else:
            server = _Smtp(host, self._url.port or 25, timeout=SECONDS)
        try:
            server.ehlo()
            if self._url.scheme == "smtp":
                self._encrypt(server, context)
            if self._url.username:
                server.login(unquote(self._url.username), unquote(self._url.password or ""))
        except BaseException:
            server.close()
            raise
        return server

    def _encrypt(self, server: smtplib.SMTP, context: ssl.SSLContext) -> None:
        """Begin TLS. Go on without it only where an eavesdropper is not feared.

        Raises:
            InsecureConnection: the server offers no STARTTLS, or someone on the way has removed the offer.
        """
        if server.has_extn("starttls"):
            server.starttls(context=context)
            server.ehlo()
        elif not self._allows_cleartext:
            raise InsecureConnection(
                "It offers no STARTTLS, and mail is not sent in cleartext. Use a server with STARTTLS or an "
                "smtps:// URL; to accept cleartext on a network that you trust, set ALLOW_INSECURE=mail."
            )
        elif self._url.username and not is_loopback(self._url.hostname):
            raise InsecureConnection(
                "It offers no STARTTLS, and a password is never sent in cleartext. Use a server with "
                "STARTTLS or an smtps:// URL, or remove the password from MAIL_URL."
            )


class _Smtp(smtplib.SMTP):
    """Connects within its timeout, name lookup and all addresses included."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = sockets.connect(host, port, time.monotonic() + timeout)
        connection.settimeout(timeout)
        return connection


class _SmtpOverTls(smtplib.SMTP_SSL, _Smtp):
    """The same, encrypted from the beginning."""


def _set_timeout(server: smtplib.SMTP, seconds: float) -> None:
    if server.sock is not None:
        server.sock.settimeout(seconds)


def arguments_of(mail: OutgoingMail) -> dict[str, str | int]:
    """The arguments that the mail was stored with."""
    arguments: dict[str, str | int] = json.loads(mail.arguments)
    return arguments


def _is_final(error: Exception) -> bool:
    """Whether the server refuses this mail for good (RFC 5321 section 4.2.1)."""
    if isinstance(error, smtplib.SMTPNotSupportedError):  # an address that needs SMTPUTF8
        return True
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
    else:
        codes = [error.smtp_code] if isinstance(error, smtplib.SMTPResponseException) else []
    return bool(codes) and all(code >= 500 and code not in _SIGN_IN_REPLIES for code in codes)


def _log_failure(error: Exception, *, final: bool = False) -> None:
    # The type only: a server's words may quote the address.
    log.error("mail_not_sent", extra={"reason": type(error).__name__, "final": final})
