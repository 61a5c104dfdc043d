"""Mails to the owner of an account: which are sent, and how many. `app.user.emails` has what they say."""

from sqlalchemy.orm import Session

from app.errors import TooManyAttempts
from app.infra.database import writing
from app.models import MailKind, Purpose, User, normalization
from app.services import services

MAILS_AN_HOUR = 5


def tell(db: Session, user: User, kind: MailKind) -> None:
    """Mail news to a verified address only: others may be a stranger's, who must not be flooded."""
    if user.email_verified:
        # The last one outlives the account.
        user_id = None if kind is MailKind.ACCOUNT_DELETED else user.id
        services().mailer.enqueue(db, kind, to=user.mail_to, user_id=user_id)


def ask_to_verify(user: User) -> None:
    """Mail a link that verifies a new address, where mail can be sent at all."""
    to = user.email_to_verify
    if to is not None and services().mailer.is_configured and may_be_mailed(to, Purpose.EMAIL_VERIFICATION):
        mail_verification(user)


def may_be_mailed(address: str, purpose: Purpose) -> bool:
    """Count a mail. False if there were too many to this address this hour. The caller must not reveal it."""
    try:
        count_mail(address, purpose)
    except TooManyAttempts:
        return False
    return True


def count_mail(address: str, purpose: Purpose) -> None:
    """Count a mail with a token to this address, which someone other than its owner may have requested.

    Raises:
        TooManyAttempts
    """
    key = f"{purpose} {normalization.address_form(address)}"
    services().throttle.hit("mails", key, limit=MAILS_AN_HOUR)


def mail_password_reset(address: str) -> None:
    """Mail a token to the account with this address, if there is one. That is looked up at delivery.

    The work here is the same in either case, so that its time reveals nothing.
    """
    with writing() as db:
        services().mailer.enqueue(db, MailKind.PASSWORD_RESET, to=normalization.address_form(address))


def mail_verification(user: User) -> None:
    """Mail the user a token that verifies the address that is not verified yet."""
    to = user.email_to_verify
    if to is not None:
        with writing() as db:
            services().mailer.enqueue(db, MailKind.EMAIL_VERIFICATION, to=to, user_id=user.id)
