"""A mail server on loopback that stores the emails that it receives."""

import asyncio
import email
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.policy import default
from typing import Any, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.helpers import secret_scanner
from tests.helpers.servers import LONG, eventually, free_port

# Subjects of emails.
VERIFY = "Confirm your email address"
RESET = "Reset your password"
CHANGE_REQUESTED = "Your email address is about to change"
CHANGED = "Your email address was changed"
CHANGE_UNDONE = "Choose a new password"


class Mailbox:
    """The emails that were received, in order, and the recipients of their envelopes.

    `reject_with` is the reply to every email, `reject_recipients_with` the reply to every RCPT, and
    `reject_senders_with` the reply to every MAIL, if set. `lose_replies` is the number of emails that are
    accepted without a reply: the connection is closed.
    """

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.reject_with: str | None = None
        self.reject_recipients_with: str | None = None
        self.reject_senders_with: str | None = None
        self.lose_replies = 0
        self.attempts = 0

    async def handle_MAIL(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.reject_senders_with is not None:
            self.attempts += 1
            return self.reject_senders_with
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 good"

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if self.reject_recipients_with is not None:
            self.attempts += 1
            return self.reject_recipients_with
        envelope.rcpt_tos.append(address)
        return "250 good"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.attempts += 1
        if self.reject_with is not None:
            return self.reject_with
        self.recipients += envelope.rcpt_tos
        content = cast("bytes", envelope.original_content)
        self.mails.append(email.message_from_bytes(content, policy=default))
        if self.lose_replies:
            self.lose_replies -= 1
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        return "250 kept"

    def wait(self, count: int = 1) -> list[EmailMessage]:
        """Return the emails, once there are this many."""
        eventually(lambda: len(self.mails) >= count)
        return self.mails

    def to(self, address: str, subject: str = "") -> list[EmailMessage]:
        """Return the emails to an address with this text in the subject."""
        return [mail for mail in self.mails if mail["To"] == address and subject in mail["Subject"]]

    def wait_for(self, address: str, subject: str) -> EmailMessage:
        """Return the last email to an address with this text in the subject, once there is one."""
        eventually(lambda: self.to(address, subject))
        return self.to(address, subject)[-1]


@contextmanager
def running_mailbox(**options: Any) -> Iterator[tuple[Mailbox, str]]:
    """Run a mail server. Yields its mailbox and its MAIL_URL. The options are those of aiosmtpd."""
    mailbox = Mailbox()
    defaults = {"port": free_port(), "ready_timeout": LONG}
    controller = Controller(mailbox, hostname="127.0.0.1", **{**defaults, **options})
    controller.start()
    try:
        yield mailbox, f"smtp://127.0.0.1:{controller.port}"
    finally:
        controller.stop()


def token_in(mail: EmailMessage) -> str:
    """Return the token of the link in an email, which the secret scanner looks for from now on."""
    found = re.search(r"#(?:password-reset|email-verification|email-change)=([\w-]+)", mail.get_content())
    assert found, mail.get_content()
    secret_scanner.SCANNER.learn("a token from a mail", found[1])
    return found[1]
