"""Writes the texts of emails. Links carry their token after a `#`, which browsers do not send to any server.

No email contains text that a user chose. Otherwise, anyone could send their own text to any address, by
registering it as a username.
"""

import json
from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session

from app.auth import email_tokens, lookup
from app.infra.database import run_in_transaction
from app.mail.transport import Email
from app.models import MailKind, OutgoingMail, Purpose, Right, User

_IGNORE = "If you didn't request this, you can ignore this email."
_NOT_YOU = "If you didn't do this, reset your password right away: {home}"
_ADDRESS_CHANGED = "Your email address was changed"

# Subject and paragraphs of the emails that contain no token.
_NOTICES = {
    MailKind.EMAIL_SET_BY_OPERATOR: (
        _ADDRESS_CHANGED,
        "An administrator of this service changed the email address of your account.",
        "If you didn't ask for this, please contact the administrator: {home}",
    ),
    MailKind.USERNAME_CHANGED: (
        "Your username was changed",
        "The username of your account was changed.",
        _NOT_YOU,
    ),
    MailKind.PASSWORD_CHANGED: (
        "Your password was changed",
        "The password of your account was changed.",
        _NOT_YOU,
    ),
    MailKind.PERSONAL_ACCESS_TOKEN_CREATED: (
        "A personal access token was created",
        "A personal access token was created for your account.",
        "Until {date}, any program with this token can:\n{uses}",
        "If you didn't do this, reset your password right away, which also revokes all tokens: {home}",
    ),
    MailKind.SPOTIFY_SIGN_IN_ADDED: (
        "Spotify was added as a way to sign in",
        "A Spotify account that can be used to sign in was connected to your account.",
        "If you didn't do this, reset your password right away, which also removes Spotify again: {home}",
    ),
    MailKind.SPOTIFY_SIGN_IN_REMOVED: (
        "Spotify was removed as a way to sign in",
        "Spotify can no longer be used to sign in to your account.",
        "Sign in with your password instead. If you have none, request a link to choose one.",
        _NOT_YOU,
    ),
    MailKind.ACCOUNT_DELETED: (
        "Your account was deleted",
        "We deleted your account, your Spotify connection, and all other data we stored about you.",
    ),
    MailKind.SPOTIFY_ENDS_SOON: (
        "Please renew your Spotify connection",
        "Spotify requires you to renew access every six months. Your connection expires on {date}.",
        "To keep it, connect Spotify again before then: {home}",
    ),
    MailKind.SPOTIFY_APP_REFUSED: (
        "Spotify rejects your application",
        "Spotify rejects the application that you registered here, so your connection does not work.",
        "Check at https://developer.spotify.com/dashboard that the application still exists.",
        "Then register it again, with the client secret that is shown there: {home}",
    ),
}
# What the rights of a token allow.
_USES = {
    Right.SPOTIFY_READ: "read your Spotify data",
    Right.SPOTIFY_WRITE: "control Spotify and change your library",
    Right.ACCOUNT_READ: "see your account",
}


class EmailWriter:
    """Writes emails whose links lead to the frontend."""

    def __init__(self, frontend_url: str) -> None:
        self._home = frontend_url
        self._writers: dict[MailKind, Callable[[Session, OutgoingMail], Email | None]] = {
            MailKind.PASSWORD_RESET: self._password_reset,
            MailKind.EMAIL_VERIFICATION: self._email_verification,
            MailKind.EMAIL_CHANGE_REQUESTED: self._email_change_requested,
            MailKind.EMAIL_CHANGED: self._email_changed,
            MailKind.EMAIL_CHANGE_UNDONE: self._email_change_undone,
        }

    def write(self, mail: OutgoingMail) -> Email | None:
        """Return the text of an email from the outbox, or None if it is no longer needed.

        Tokens are issued here, at delivery, so that the outbox contains none.
        """
        kind = MailKind(mail.kind)
        if kind in _NOTICES:
            return self._notice(kind, mail)
        return run_in_transaction(lambda db: self._writers[kind](db, mail))

    def _notice(self, kind: MailKind, mail: OutgoingMail) -> Email:
        values, arguments = {"home": self._home}, json.loads(mail.arguments)
        if "expires_at" in arguments:
            end = datetime.fromisoformat(arguments["expires_at"])
            values["date"] = f"{end:%B} {end.day}, {end.year}"
        if "rights" in arguments:
            values["uses"] = "\n".join(f"- {_USES[right]}" for right in arguments["rights"].split())
        subject, *paragraphs = _NOTICES[kind]
        return self._email(mail.recipient, subject, *(text.format(**values) for text in paragraphs))

    def _password_reset(self, db: Session, mail: OutgoingMail) -> Email | None:
        user = lookup.by_email(db, mail.recipient)
        issued = email_tokens.issue(db, user.id, Purpose.PASSWORD_RESET) if user is not None else None
        if issued is None:
            return None
        return self._email(
            issued.to,
            "Reset your password",
            "We received a request to reset your password. To choose a new one, open this link within one "
            "hour:",
            self._link("password-reset", issued.token),
            _IGNORE,
        )

    def _email_verification(self, db: Session, mail: OutgoingMail) -> Email | None:
        user = db.get(User, mail.user_id)
        if user is None or user.email_to_verify != mail.recipient:
            return None
        issued = email_tokens.issue(db, user.id, Purpose.EMAIL_VERIFICATION)
        if issued is None:
            return None
        return self._email(
            issued.to,
            "Confirm your email address",
            "Please confirm your email address within 24 hours:",
            self._link("email-verification", issued.token),
            _IGNORE,
        )

    def _email_change_requested(self, db: Session, mail: OutgoingMail) -> Email | None:
        text = (
            "We received a request to change the email address of your account. "
            "The change takes effect when the new address is confirmed."
        )
        return self._with_undo(db, mail, "Your email address is about to change", text)

    def _email_changed(self, db: Session, mail: OutgoingMail) -> Email | None:
        text = "The email address of your account was changed. We no longer send email to this address."
        return self._with_undo(db, mail, _ADDRESS_CHANGED, text)

    def _with_undo(self, db: Session, mail: OutgoingMail, subject: str, text: str) -> Email | None:
        token = email_tokens.issue_undo(db, mail.user_id, mail.recipient) if mail.user_id else None
        if token is None:
            return None
        return self._email(
            mail.recipient,
            subject,
            text,
            "If you didn't request this change, undo it within seven days:",
            self._link("email-change", token),
            "Undoing it restores this address, signs you out everywhere, and lets you choose a new password.",
        )

    def _email_change_undone(self, db: Session, mail: OutgoingMail) -> Email | None:
        issued = email_tokens.issue(db, mail.user_id, Purpose.PASSWORD_RESET) if mail.user_id else None
        if issued is None:
            return None
        return self._email(
            issued.to,
            "Choose a new password",
            "Your account uses this email address again. We signed you out everywhere, and your old password "
            "no longer works. To choose a new one, open this link within one hour:",
            self._link("password-reset", issued.token),
            f"If the link has expired, request another one: {self._home}",
        )

    def _link(self, page: str, token: str) -> str:
        return f"{self._home}#{page}={token}"

    def _email(self, to: str, subject: str, *paragraphs: str) -> Email:
        return Email(to, subject, "\n\n".join((*paragraphs, f"Sent by {self._home}")) + "\n")
