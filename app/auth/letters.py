"""What the mails say. Links carry their token after a `#`, which browsers keep to themselves."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth import one_time_tokens
from app.database import write_again_on_conflict
from app.mail import Mail, arguments_of
from app.models import MailKind, OutgoingMail, Purpose, User
from app.parts import parts

_FOOT = "\n\nIf this was not you, you need do nothing."


def write(mail: OutgoingMail) -> Mail | None:
    """Make the text of a mail from the outbox. Returns None if it is no longer needed.

    One-time tokens are issued here, at delivery, so that the outbox holds none.
    """
    return write_again_on_conflict(lambda db: _WRITERS[MailKind(mail.kind)](db, mail))


def _password_reset(db: Session, mail: OutgoingMail) -> Mail | None:
    user = db.scalar(sa.select(User).where(User.email == mail.recipient))
    token = one_time_tokens.issue(db, user, Purpose.PASSWORD_RESET) if user is not None else None
    if user is None or token is None:
        return None
    text = "somebody has asked for a new password for your account. To choose one, within an hour:"
    page = parts().config.frontend_url
    return _to(user, "Choose a new password", f"{text}\n\n{page}#password-reset={token}{_FOOT}")


def _email_verification(db: Session, mail: OutgoingMail) -> Mail | None:
    user = db.get(User, mail.user_id)
    if user is None or user.email_verified or user.email != mail.recipient:
        return None
    token = one_time_tokens.issue(db, user, Purpose.EMAIL_VERIFICATION)
    text = "please confirm, within a day, that this is your address:"
    page = parts().config.frontend_url
    return _to(user, "Is this your address?", f"{text}\n\n{page}#email-verification={token}{_FOOT}")


def _password_changed(_db: Session, mail: OutgoingMail) -> Mail:
    text = "your password was changed. If this was not you, ask for a new one at once:"
    return _notice(mail, "Your password was changed", f"{text} {parts().config.frontend_url}")


def _email_changed(_db: Session, mail: OutgoingMail) -> Mail:
    text = "your account has another address now. If this was not you, somebody knows your password."
    who = f"Please tell the people who run {parts().config.frontend_url}."
    return _notice(mail, "Your address was changed", f"{text} {who}")


def _account_deleted(_db: Session, mail: OutgoingMail) -> Mail:
    text = "your account is deleted, with the connection to Spotify and everything else we had of yours."
    return _notice(mail, "Your account is deleted", text)


def _spotify_ends_soon(_db: Session, mail: OutgoingMail) -> Mail:
    days = arguments_of(mail)["days"]
    when = "tomorrow" if days == 1 else f"in {days} days"
    text = f"every half year Spotify asks anew whether you agree. Your connection ends {when}."
    then = f"Then please connect Spotify again: {parts().config.frontend_url}"
    return _notice(mail, "Please connect Spotify again", f"{text} {then}")


def _notice(mail: OutgoingMail, subject: str, text: str) -> Mail:
    return Mail(mail.recipient, subject, f"Hello {arguments_of(mail)['username']},\n\n{text}\n")


def _to(user: User, subject: str, text: str) -> Mail:
    return Mail(user.email, subject, f"Hello {user.username},\n\n{text}\n")


_WRITERS: dict[MailKind, Callable[[Session, OutgoingMail], Mail | None]] = {
    MailKind.PASSWORD_RESET: _password_reset,
    MailKind.EMAIL_VERIFICATION: _email_verification,
    MailKind.PASSWORD_CHANGED: _password_changed,
    MailKind.EMAIL_CHANGED: _email_changed,
    MailKind.ACCOUNT_DELETED: _account_deleted,
    MailKind.SPOTIFY_ENDS_SOON: _spotify_ends_soon,
}
