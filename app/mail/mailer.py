"""Delivers emails from the outbox in a thread, so that no response waits for a mail server."""

import atexit
import logging
import random
import smtplib
import threading
from collections.abc import Callable

from flask import Flask
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.mail import outbox
from app.mail.transport import ConsoleTransport, Email, Send, SmtpTransport, is_permanent
from app.models import MailKind, OutgoingMail

log = logging.getLogger(__name__)

MAX_EMAILS_PER_CONNECTION = 50  # some servers accept no more
HEAD_START_SECONDS = 0.1
POLL_SECONDS = 5.0  # finds emails from other processes, and those due for another attempt
MAX_RECONNECT_DELAY_SECONDS = 30.0
CLOSE_TIMEOUT_SECONDS = 5.0


class Mailer:
    """Stores emails in the outbox and delivers them.

    `write` returns the text of an email that is being delivered, or None if it is no longer needed.
    """

    def __init__(
        self,
        app: Flask,
        transport: SmtpTransport | ConsoleTransport | None,
        write: Callable[[OutgoingMail], Email | None],
    ) -> None:
        self._app = app
        self.transport = transport
        self._write = write
        self._start_lock, self._closing, self._wake = threading.Lock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_configured(self) -> bool:
        """Whether this server can send email."""
        return self.transport is not None

    @property
    def to_console(self) -> bool:
        """Whether emails are printed instead of sent."""
        return isinstance(self.transport, ConsoleTransport)

    def check_connection(self) -> None:
        """Connect to the mail server and authenticate.

        Raises:
            OSError, smtplib.SMTPException: Emails cannot be sent.
        """
        if self.transport is not None:
            with self.transport.connect():
                pass

    def enqueue(
        self, db: Session, kind: MailKind, *, to: str, user_id: int | None = None, **arguments: str | int
    ) -> None:
        """Store an email in the caller's transaction. Delivery starts when the transaction is committed.

        Args:
            db: The caller's transaction.
            kind: The kind of email.
            to: The recipient's address.
            user_id: The account whose deletion also deletes the email.
            arguments: Other values for the text. They are stored unencrypted, so they must not be secret.
        """
        if not self.is_configured:
            log.error("mail_not_sent", extra={"reason": "no MAIL_URL", "final": True})
        elif outbox.add(db, kind, to=to, user_id=user_id, **arguments) is not None:
            event.listen(db, "after_commit", lambda _: self.start(), once=True)

    def start(self) -> None:
        """Deliver the emails that are due, now and from now on, in a thread."""
        self._wake.set()
        with self._start_lock:
            if self._thread is None and self.is_configured and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="mail", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def close(self) -> None:
        """Finish the email that is being sent. The others stay in the outbox."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_SECONDS)
        atexit.unregister(self.close)

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            if failures:
                delay = min(2.0 ** min(failures - 1, 10), MAX_RECONNECT_DELAY_SECONDS)
                self._closing.wait(delay * random.uniform(0.5, 1))
            else:
                self._wake.wait(POLL_SECONDS * random.uniform(0.5, 1))
            self._wake.clear()
            # Delivering at once could slow down the response, which would reveal that there is an email.
            self._closing.wait(HEAD_START_SECONDS)
            with self._app.app_context():
                failures = 0 if self._deliver_due() else failures + 1

    def _deliver_due(self) -> bool:
        """Deliver all emails that are due. Returns False if the database or the mail server is down."""
        assert self.transport is not None
        try:
            while outbox.has_due() and not self._closing.is_set():
                # Connect before claiming an email, so that an outage does not count as an attempt.
                with self.transport.connect() as send:
                    self._deliver_over(send)
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

    def _deliver_over(self, send: Send) -> None:
        """Deliver emails over one connection until it breaks or none is due."""
        for _ in range(MAX_EMAILS_PER_CONNECTION):
            mail = None if self._closing.is_set() else outbox.claim()
            if mail is None or not self._deliver(mail, send):
                return

    def _deliver(self, mail: OutgoingMail, send: Send) -> bool:
        """Deliver a claimed email. Returns whether the connection is still usable."""
        try:
            email = self._write(mail)
            if email is not None:
                send(email, mail)
                log.info("mail_sent")
        except SQLAlchemyError:
            raise
        except (OSError, smtplib.SMTPException) as error:
            final = is_permanent(error)
            _log_failure(error, final=final)
            (outbox.remove if final else outbox.schedule_retry)(mail)
            return False
        except Exception:
            log.exception("mail_failed")
            outbox.schedule_retry(mail)
            return False
        outbox.remove(mail)
        return True


def _log_failure(error: Exception, *, final: bool = False) -> None:
    # The type only: the server's message may quote the address.
    log.error("mail_not_sent", extra={"reason": type(error).__name__, "final": final})
