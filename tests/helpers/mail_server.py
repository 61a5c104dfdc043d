"""A real mail server on loopback that keeps what it is sent, for tests that read mails."""

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
from tests.helpers.servers import eventually, free_port


class Mailbox:
    """What was sent, in order, and to whom according to the envelopes.

    `refuse` is a reply that the server gives to every mail, if it is set; `refuse_recipient` is one that
    it gives to every RCPT, before it has seen the mail.
    """

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.refuse: str | None = None
        self.refuse_recipient: str | None = None
        self.tries = 0

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if self.refuse_recipient is not None:
            self.tries += 1
            return self.refuse_recipient
        envelope.rcpt_tos.append(address)
        return "250 good"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.tries += 1
        if self.refuse is not None:
            return self.refuse
        self.recipients += envelope.rcpt_tos
        content = cast("bytes", envelope.original_content)
        self.mails.append(cast("EmailMessage", email.message_from_bytes(content, policy=default)))
        return "250 kept"

    def wait(self, count: int = 1) -> list[EmailMessage]:
        """The mails, once there are so many."""
        eventually(lambda: len(self.mails) >= count)
        return self.mails

    def to(self, address: str, subject: str = "") -> list[EmailMessage]:
        """The mails that went to an address, with this in their subject."""
        return [mail for mail in self.mails if mail["To"] == address and subject in mail["Subject"]]

    def wait_for(self, address: str, subject: str) -> EmailMessage:
        """The last mail to an address with this in its subject, once there is one."""
        eventually(lambda: self.to(address, subject))
        return self.to(address, subject)[-1]


@contextmanager
def running_mailbox(**options: Any) -> Iterator[tuple[Mailbox, str]]:
    """A mail server, and the MAIL_URL to reach it by. Options are aiosmtpd's."""
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", **{"port": free_port(), **options})
    controller.start()
    try:
        yield mailbox, f"smtp://127.0.0.1:{controller.port}"
    finally:
        controller.stop()


def token_in(mail: EmailMessage) -> str:
    """The token of the link in a mail. The secret scanner learns it."""
    found = re.search(r"#(?:password-reset|email-verification|email-change)=([\w-]+)", mail.get_content())
    assert found, mail.get_content()
    secret_scanner.SCANNER.learn("a token from a mail", found[1])
    return found[1]
