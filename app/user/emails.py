"""What emails say. Links carry their token after a `#`, which browsers do not send to any server.

Nothing in an email was chosen by a user: anybody could have a text of their own sent to any address by
registering it as a username.
"""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session

from app.auth import email_tokens, lookup
from app.infra.database import run_in_transaction
from app.mail.mailer import Mail, arguments_of
from app.models import MailKind, OutgoingMail, Purpose, User
from app.services import services

_IGNORE = "If you didn't request this, you can ignore this email."
_NOT_YOU = "If this wasn't you, choose a new password now:"
_CHANGED = "Your email address was changed"


def write(mail: OutgoingMail) -> Mail | None:
    """Write the text of an email from the outbox. Returns None if it is no longer needed.

    One-time tokens are issued here, at delivery, so that the outbox holds none.
    """
    return run_in_transaction(lambda db: _WRITERS[MailKind(mail.kind)](db, mail))


def _password_reset(db: Session, mail: OutgoingMail) -> Mail | None:
    user = lookup.by_email(db, mail.recipient)
    issued = email_tokens.issue(db, user.id, Purpose.PASSWORD_RESET) if user is not None else None
    if issued is None:
        return None
    text = "We received a request to reset your password. To choose a new one, open this link within an hour:"
    return _mail(issued.to, "Choose a new password", text, _link("password-reset", issued.token), _IGNORE)


def _email_verification(db: Session, mail: OutgoingMail) -> Mail | None:
    user = db.get(User, mail.user_id)
    if user is None or user.email_to_verify != mail.recipient:
        return None
    issued = email_tokens.issue(db, user.id, Purpose.EMAIL_VERIFICATION)
    if issued is None:
        return None
    text = "Please confirm your email address within 24 hours:"
    return _mail(issued.to, "Is this your address?", text, _link("email-verification", issued.token), _IGNORE)


def _email_change_requested(db: Session, mail: OutgoingMail) -> Mail | None:
    text = (
        "We received a request to change the email address of your account. "
        "The change takes effect when the new address is confirmed."
    )
    return _with_undo(db, mail, "Your email address is about to change", text)


def _email_changed(db: Session, mail: OutgoingMail) -> Mail | None:
    text = "The email address of your account was changed. We no longer send mail to this one."
    return _with_undo(db, mail, _CHANGED, text)


def _with_undo(db: Session, mail: OutgoingMail, subject: str, text: str) -> Mail | None:
    token = email_tokens.issue_undo(db, mail.user_id, mail.recipient) if mail.user_id else None
    if token is None:
        return None
    return _mail(
        mail.recipient,
        subject,
        text,
        "If you didn't request this, undo it within seven days:",
        _link("email-change", token),
        "This restores your address, signs you out everywhere, and lets you choose a new password.",
    )


def _email_change_undone(db: Session, mail: OutgoingMail) -> Mail | None:
    issued = email_tokens.issue(db, mail.user_id, Purpose.PASSWORD_RESET) if mail.user_id else None
    if issued is None:
        return None
    text = (
        "Your account uses this email address again. We signed you out everywhere, and your old password "
        "no longer works. To choose a new one, open this link within an hour:"
    )
    then = f"If the link has expired, request another one: {_home()}"
    return _mail(issued.to, "Choose a new password", text, _link("password-reset", issued.token), then)


def _email_set_by_operator(_db: Session, mail: OutgoingMail) -> Mail:
    text = "The people who run this service changed the email address of your account."
    return _mail(mail.recipient, _CHANGED, text, f"If you didn't ask for this, tell them: {_home()}")


def _username_changed(_db: Session, mail: OutgoingMail) -> Mail:
    text = "Your username was changed."
    return _mail(mail.recipient, "Your username was changed", text, f"{_NOT_YOU} {_home()}")


def _password_changed(_db: Session, mail: OutgoingMail) -> Mail:
    text = "Your password was changed."
    return _mail(mail.recipient, "Your password was changed", text, f"{_NOT_YOU} {_home()}")


def _account_deleted(_db: Session, mail: OutgoingMail) -> Mail:
    text = "We deleted your account, your connection to Spotify, and all other data we had about you."
    return _mail(mail.recipient, "Your account is deleted", text)


def _spotify_ends_soon(_db: Session, mail: OutgoingMail) -> Mail:
    end = datetime.fromisoformat(str(arguments_of(mail)["expires_at"]))
    date = f"{end:%B} {end.day}, {end.year}"
    text = f"Spotify requires you to renew access every six months. Your connection expires on {date}."
    then = f"To keep it, connect Spotify again: {_home()}"
    return _mail(mail.recipient, "Please connect Spotify again", text, then)


def _home() -> str:
    return services().config.frontend_url


def _link(page: str, token: str) -> str:
    return f"{_home()}#{page}={token}"


def _mail(to: str, subject: str, *paragraphs: str) -> Mail:
    return Mail(to, subject, "\n\n".join((*paragraphs, f"Sent by {_home()}")) + "\n")


_WRITERS: dict[MailKind, Callable[[Session, OutgoingMail], Mail | None]] = {
    MailKind.PASSWORD_RESET: _password_reset,
    MailKind.EMAIL_VERIFICATION: _email_verification,
    MailKind.EMAIL_CHANGE_REQUESTED: _email_change_requested,
    MailKind.EMAIL_CHANGED: _email_changed,
    MailKind.EMAIL_CHANGE_UNDONE: _email_change_undone,
    MailKind.EMAIL_SET_BY_OPERATOR: _email_set_by_operator,
    MailKind.USERNAME_CHANGED: _username_changed,
    MailKind.PASSWORD_CHANGED: _password_changed,
    MailKind.ACCOUNT_DELETED: _account_deleted,
    MailKind.SPOTIFY_ENDS_SOON: _spotify_ends_soon,
}
