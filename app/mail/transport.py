"""Transports for emails: an SMTP server or, in development, the console."""

import smtplib
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime
from typing import TextIO
from urllib.parse import unquote, urlsplit

from app.infra import sockets
from app.models import OutgoingMail
from app.settings.urls import is_loopback
from config import Config

CONNECT_TIMEOUT_SECONDS = 10  # for each step of connecting
# For each of the five steps of handing over an email. Servers scan an email before they accept it, so giving
# up too early would send it twice. All steps must end before the outbox's lease on the email does.
SEND_TIMEOUT_SECONDS = 100

# Replies that are about our credentials, not about the email (RFC 4954 section 6).
_AUTHENTICATION_REPLIES = (530, 534, 535, 538)


@dataclass(frozen=True)
class Email:
    """The recipient and the text of an email."""

    to: str
    subject: str
    text: str


# Sends an email. Its headers are those of its row in the outbox, so that they are the same in every attempt.
Send = Callable[[Email, OutgoingMail], None]


class InsecureConnection(smtplib.SMTPException):
    """The mail server offers no encryption. The message says what to do."""


class ConsoleTransport:
    """Prints emails to standard error, for development."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    @contextmanager
    def connect(self) -> Iterator[Send]:
        """Yield the function that prints an email."""
        yield self._print

    def _print(self, email: Email, _mail: OutgoingMail) -> None:
        text = f"\n--- email to {email.to}: {email.subject} ---\n{email.text}--- end ---\n\n"
        (self.stream or sys.stderr).write(text)


class SmtpTransport:
    """Sends emails through the server that MAIL_URL names."""

    def __init__(self, config: Config) -> None:
        self._url = urlsplit(config.mail_url)
        self._host = self._url.hostname or ""
        self._from = config.mail_from
        self._cleartext_allowed = "mail" in config.allow_insecure or is_loopback(self._host)

    @contextmanager
    def connect(self) -> Iterator[Send]:
        """Connect and authenticate. Yields the function that sends an email over this connection.

        Raises:
            InsecureConnection: The server offers no encryption where it is needed.
            smtplib.SMTPException: The server rejects the connection, the credentials, or an email.
            OSError: The server cannot be reached or stops responding.
        """
        server = self._open()
        try:
            _set_timeout(server, SEND_TIMEOUT_SECONDS)
            yield lambda email, mail: self._send(server, email, mail)
            # The emails that were accepted are sent, whatever the server replies to QUIT.
            with suppress(OSError, smtplib.SMTPException):
                _set_timeout(server, CONNECT_TIMEOUT_SECONDS)
                server.quit()
        finally:
            server.close()

    def _open(self) -> smtplib.SMTP:
        context, timeout = ssl.create_default_context(), CONNECT_TIMEOUT_SECONDS
        if self._url.scheme == "smtps":
            server: smtplib.SMTP = _SmtpOverTls(
                self._host, self._url.port or 465, timeout=timeout, context=context
            )
        else:
            server = _Smtp(self._host, self._url.port or 25, timeout=timeout)
        try:
            server.ehlo()
            if self._url.scheme == "smtp":
                self._start_tls(server, context)
            if self._url.username:
                server.login(unquote(self._url.username), unquote(self._url.password or ""))
        except BaseException:
            server.close()
            raise
        return server

    def _start_tls(self, server: smtplib.SMTP, context: ssl.SSLContext) -> None:
        """Encrypt the connection, or continue in cleartext where that is allowed.

        Raises:
            InsecureConnection: The server offers no STARTTLS, or an attacker has removed the offer.
        """
        if server.has_extn("starttls"):
            server.starttls(context=context)
            server.ehlo()
        elif not self._cleartext_allowed:
            raise InsecureConnection(
                "The server does not offer STARTTLS, and email is not sent in cleartext. Use a server that "
                "offers STARTTLS, or an smtps:// URL. To allow cleartext on a network you trust, set "
                "ALLOW_INSECURE=mail."
            )
        elif self._url.username and not is_loopback(self._host):
            raise InsecureConnection(
                "The server does not offer STARTTLS, and a password is never sent in cleartext. Use a server "
                "that offers STARTTLS, use an smtps:// URL, or remove the password from MAIL_URL."
            )

    def _send(self, server: smtplib.SMTP, email: Email, mail: OutgoingMail) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._from, email.to, email.subject
        message["Date"] = format_datetime(mail.created_at)
        message["Message-ID"] = f"<{mail.message_id}@{self._from.partition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: prevents out-of-office replies
        message.set_content(email.text)
        # Not to the address that parsing the To header would yield.
        server.send_message(message, to_addrs=[email.to])


def create_transport(config: Config) -> SmtpTransport | ConsoleTransport | None:
    """Return the transport that the settings ask for, or None if this server sends no email."""
    if config.mail_url:
        return SmtpTransport(config)
    return ConsoleTransport() if config.app_env == "development" else None


def is_permanent(error: Exception) -> bool:
    """Return whether the server rejects this email permanently (RFC 5321 section 4.2.1)."""
    if isinstance(error, smtplib.SMTPNotSupportedError):  # the address needs SMTPUTF8
        return True
    if isinstance(error, smtplib.SMTPSenderRefused):  # MAIL_FROM, which an operator can correct
        return False
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
    else:
        codes = [error.smtp_code] if isinstance(error, smtplib.SMTPResponseException) else []
    return bool(codes) and all(code >= 500 and code not in _AUTHENTICATION_REPLIES for code in codes)


class _Smtp(smtplib.SMTP):
    """Connects within its timeout, including the name lookup and all addresses."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = sockets.connect(host, port, time.monotonic() + timeout)
        connection.settimeout(timeout)
        return connection


class _SmtpOverTls(smtplib.SMTP_SSL, _Smtp):
    """The same, encrypted from the start."""


def _set_timeout(server: smtplib.SMTP, seconds: float) -> None:
    if server.sock is not None:
        server.sock.settimeout(seconds)
