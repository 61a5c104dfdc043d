"""Decides which emails an account's owner gets, and how many. `app.user.emails` has the texts."""

from sqlalchemy.orm import Session

from app.errors import TooManyAttempts
from app.infra.database import run_in_transaction
from app.mail.mailer import Mailer
from app.models import MailKind, Purpose, User, normalization
from app.web.throttle import Throttle

EMAILS_PER_HOUR = 5


class Notifications:
    """Sends emails to the owners of accounts."""

    def __init__(self, mailer: Mailer, throttle: Throttle) -> None:
        self._mailer = mailer
        self._throttle = throttle

    def notify(self, db: Session, user: User, kind: MailKind, **arguments: str) -> None:
        """Email a notice, in the caller's transaction, if the address is verified.

        An unverified address may be a stranger's, and someone may want to flood it. `arguments` are values
        for the text.
        """
        if user.email_verified:
            # A notice of the deletion must outlive the account.
            user_id = None if kind is MailKind.ACCOUNT_DELETED else user.id
            self._mailer.enqueue(db, kind, to=user.mail_to, user_id=user_id, **arguments)

    def notify_address(self, db: Session, address: str, kind: MailKind) -> None:
        """Email a notice to an address that was verified earlier, in the caller's transaction."""
        self._mailer.enqueue(db, kind, to=address)

    def request_verification(self, user: User) -> None:
        """Email a verification link to a new address, unless it has received too many emails."""
        address = user.email_to_verify
        if address is None or not self._mailer.is_configured:
            return
        if self.is_within_limit(address, Purpose.EMAIL_VERIFICATION):
            self.send_verification(user)

    def is_within_limit(self, address: str, purpose: Purpose) -> bool:
        """Count an email, and return whether it may be sent. The response must not reveal the result."""
        try:
            self.count(address, purpose)
        except TooManyAttempts:
            return False
        return True

    def count(self, address: str, purpose: Purpose) -> None:
        """Count an email with a token. Someone other than the owner of the address may have requested it.

        Raises:
            TooManyAttempts: Too many were sent to this address within an hour.
        """
        key = f"{purpose} {normalization.address_form(address)}"
        self._throttle.hit("mails", key, limit=EMAILS_PER_HOUR)

    def send_password_reset(self, address: str) -> None:
        """Email a reset link to the account with this address, if there is one.

        The account is looked up at delivery, so that the response takes equally long in both cases.
        """
        to = normalization.address_form(address)
        run_in_transaction(lambda db: self._mailer.enqueue(db, MailKind.PASSWORD_RESET, to=to))

    def send_verification(self, user: User) -> None:
        """Email a verification link to the user's unverified address, if there is one."""
        address = user.email_to_verify
        if address is not None:
            run_in_transaction(
                lambda db: self._mailer.enqueue(db, MailKind.EMAIL_VERIFICATION, to=address, user_id=user.id)
            )
