"""Transports for emails: an SMTP server or, in development, the console."""

import io
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
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from app.infra import sockets
from app.models import OutgoingMail
from app.settings.urls import is_loopback
from config import Config

CONNECT_SECONDS = 30  # for connecting, TLS, and authentication together
# For handing over one email, within the outbox's lease on it. Servers scan an email before they accept it, so
# giving up too early would send it twice.
SEND_SECONDS = 300
QUIT_SECONDS = 10
MAX_REPLY_BYTES = 64 * 1024

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
            yield lambda email, mail: self._send(server, email, mail)
            # The emails that were accepted are sent, whatever the server replies to QUIT.
            with suppress(OSError, smtplib.SMTPException):
                server.limit(QUIT_SECONDS)
                server.quit()
        finally:
            server.close()

    def _open(self) -> "_Smtp":
        context, timeout = ssl.create_default_context(), CONNECT_SECONDS
        if self._url.scheme == "smtps":
            server: _Smtp = _SmtpOverTls(self._host, self._url.port or 465, timeout=timeout, context=context)
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

    def _send(self, server: "_Smtp", email: Email, mail: OutgoingMail) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._from, email.to, email.subject
        message["Date"] = format_datetime(mail.created_at)
        message["Message-ID"] = f"<{mail.message_id}@{self._from.partition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: prevents out-of-office replies
        message.set_content(email.text)
        server.limit(SEND_SECONDS)
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
    """Observes a deadline, however slowly replies arrive. A socket's timeout starts again with every byte."""

    def limit(self, seconds: float) -> None:
        """Give the next commands this much time together. Connecting has the timeout that is passed."""
        self._deadline = time.monotonic() + seconds

    def time_left(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            TimeoutError: It has passed.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the mail server takes too long")
        return left

    def send(self, s: Any) -> None:
        """Send until the deadline."""
        if self.sock is not None:
            self.sock.settimeout(self.time_left())
        super().send(s)

    def getreply(self) -> tuple[int, bytes]:
        """Read a reply until the deadline."""
        if self.file is None and self.sock is not None:
            self.file = io.BufferedReader(_Replies(self))
        self.unread = MAX_REPLY_BYTES
        return super().getreply()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        self.limit(timeout)
        connection = sockets.connect(host, port, self._deadline)
        connection.settimeout(self.time_left())  # for the whole TLS handshake
        return connection


class _SmtpOverTls(smtplib.SMTP_SSL, _Smtp):
    """The same, encrypted from the start."""


class _Replies(io.RawIOBase):
    """Reads from the connection of an SMTP client."""

    def __init__(self, server: _Smtp) -> None:
        self._server = server

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has arrived. Wait for it until the deadline."""
        server = self._server
        assert server.sock is not None
        server.sock.settimeout(server.time_left())
        count = server.sock.recv_into(buffer)
        server.unread -= count
        if server.unread < 0:
            raise OSError("the mail server's reply does not end")
        return count
