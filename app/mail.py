"""Mail to people: sent from the background, so that no answer waits for a mail server or tells by its
time whether a mail was sent."""

import atexit
import logging
import smtplib
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from queue import Full, Queue
from urllib.parse import unquote, urlsplit

from flask import Flask, current_app

from config import Config, is_loopback

log = logging.getLogger(__name__)

SECONDS = 10  # for each step of the conversation with the mail server
TRIES, PAUSE_SECONDS = 3, 2.0
HEAD_START_SECONDS = 0.1
MOST_WAITING = 1000
THREADS = 2
CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Mail:
    to: str
    subject: str
    text: str


class Mailer:
    """Sends mails through MAIL_URL; in development without one it prints them."""

    def __init__(self, config: Config) -> None:
        self._url = urlsplit(config.mail_url)
        self._from = config.mail_from
        self.prints = not config.mail_url and config.app_env == "development"
        self._waiting: Queue[tuple[Flask, Callable[[], Mail | None]]] = Queue(MOST_WAITING)
        self._starting, self._closing = threading.Lock(), threading.Event()
        self._started = False

    @property
    def works(self) -> bool:
        """Whether this server can send mail at all."""
        return self.prints or bool(self._url.hostname)

    def examine(self) -> None:
        """Say hello to the mail server, and sign in.

        Raises:
            OSError, smtplib.SMTPException: mails could not be sent.
        """
        with self._connection():
            pass

    def soon(self, write: Callable[[], Mail | None]) -> None:
        """Write a mail and send it, both in the background. `None` is no mail."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
        if not self.works:
            log.error("mail_not_sent", extra={"reason": "no MAIL_URL"})
            return
        try:
            self._waiting.put_nowait((app, write))
        except Full:
            log.error("mail_not_sent", extra={"reason": "too many waiting"})
            return
        with self._starting:
            if not self._started:
                for number in range(THREADS):
                    threading.Thread(target=self._send_on, name=f"mail-{number}", daemon=True).start()
                atexit.register(self.close)
                self._started = True

    def close(self) -> None:
        """Send what is waiting, without new tries, but do not hold up the end of the process for long."""
        self._closing.set()
        with self._waiting.all_tasks_done:
            self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, CLOSE_SECONDS)
            left = self._waiting.unfinished_tasks
        if left:
            log.error("mail_not_sent", extra={"reason": "the process ended", "mails": left})

    def _send_on(self) -> None:
        while True:
            app, write = self._waiting.get()
            self._work(app, write)
            self._waiting.task_done()

    def _work(self, app: Flask, write: Callable[[], Mail | None]) -> None:
        # Until whoever asked has been answered: writing would slow that down, and tell that there is a mail.
        self._closing.wait(HEAD_START_SECONDS)
        try:
            with app.app_context():
                mail = write()
            if mail is not None:
                self._send(mail)
        except Exception:
            log.exception("mail_failed")

    def _send(self, mail: Mail) -> None:
        if self.prints:
            sys.stderr.write(f"\n--- mail to {mail.to}: {mail.subject} ---\n{mail.text}--- end ---\n\n")
            return
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._from, mail.to, mail.subject
        message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=self._from.partition("@")[2])
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies, please
        message.set_content(mail.text)
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                self._hand_over(message, mail.to)
            except (OSError, smtplib.SMTPException) as error:
                # The reason's class only: a server's words may quote the address.
                log.error("mail_not_sent", extra={"reason": type(error).__name__, "final": last})
                if last or self._closing.wait(PAUSE_SECONDS):
                    return
            else:
                log.info("mail_sent")
                return

    def _hand_over(self, message: EmailMessage, to: str) -> None:
        with self._connection() as server:
            # To the address as it is, not to what may be read into a header of that text.
            server.send_message(message, to_addrs=[to])

    @contextmanager
    def _connection(self) -> Iterator[smtplib.SMTP]:
        """Speak with the mail server, as securely as it can."""
        host, user = self._url.hostname or "", unquote(self._url.username or "")
        secure, context = self._url.scheme == "smtps", ssl.create_default_context()
        with (
            smtplib.SMTP_SSL(host, self._url.port or 465, timeout=SECONDS, context=context)
            if secure
            else smtplib.SMTP(host, self._url.port or 25, timeout=SECONDS)
        ) as server:
            server.ehlo()
            if not secure and server.has_extn("starttls"):
                server.starttls(context=context)
                server.ehlo()
                secure = True
            if user and not secure and not is_loopback(host):
                raise smtplib.SMTPException("The server offers no STARTTLS; the password is not sent.")
            if user:
                server.login(user, unquote(self._url.password or ""))
            yield server
