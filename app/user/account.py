"""What people do with their account: each a single transaction, after the password was proved."""

import logging

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import throttle
from app.auth import one_time_tokens, passwords
from app.auth.registration import refuse_taken
from app.clock import utc_now
from app.database import reading, write_again_on_conflict, writing
from app.models import MailKind, OutgoingMail, Purpose, SpotifyUser, TokenRefresh, User
from app.models.user import new_session_epoch
from app.parts import parts
from app.problems import InvalidCredentials, NotSignedIn, TooManyAttempts

log = logging.getLogger(__name__)

MAILS_AN_HOUR = 5


def change_profile(user: User, *, username: str | None, email: str | None) -> User:
    """Give the account another name or address, each only if it is given: another tab may change the other.

    A new address is not verified yet; the old one is told.

    Raises:
        UsernameTaken, EmailTaken
        InvalidCredentials: the password that was proved for the address has been changed meanwhile.
    """

    def unit(db: Session) -> User:
        row = _locked(db, user, proved=email is not None)
        if username is not None and username != row.username:
            refuse_taken(db, username=username)
            row.username = username
        if email is not None and email != row.email:
            refuse_taken(db, email=email)
            _tell(db, row, MailKind.EMAIL_CHANGED)
            row.email, row.email_verified_at = email, None
        db.flush()
        return row

    changed = write_again_on_conflict(unit)
    if username is not None:
        log.info("username_changed")
    if email is not None:
        log.info("email_changed")
        ask_to_verify(changed)
    return changed


def change_password(user: User, new_password: str) -> User:
    """Store a new password; every session from before it is over.

    Raises:
        InvalidCredentials: the password that was proved has been changed meanwhile.
        ValidationError: the new one is too easy to guess.
    """
    passwords.refuse_guessable(new_password, field="new_password", username=user.username, email=user.email)
    with passwords.turn():
        password_hash = passwords.hash_password(new_password)

    changed = write_again_on_conflict(
        lambda db: _store_password(db, _locked(db, user, proved=True), password_hash)
    )
    log.info("password_changed")
    return changed


def reset_password(token: str, password: str) -> User:
    """Store a new password for whoever shows the token from the mail.

    It also shows that the address is theirs.

    Raises:
        InvalidToken
        ValidationError: the password is too easy to guess. The token stays good.
    """
    purpose = Purpose.PASSWORD_RESET
    with reading() as db:
        owner = one_time_tokens.owner_of(db, token, purpose)
    passwords.refuse_guessable(password, field="password", username=owner.username, email=owner.email)
    with passwords.turn():
        password_hash = passwords.hash_password(password)

    def unit(db: Session) -> User:
        user = one_time_tokens.spend(db, token, purpose)
        user.email_verified_at = user.email_verified_at or utc_now()
        _store_password(db, user, password_hash)
        return user

    user = write_again_on_conflict(unit)
    log.info("password_reset", extra={"account": user.id})
    return user


def _store_password(db: Session, user: User, password_hash: str) -> User:
    """Put a new password's hash into a locked row, and end what the old one began.

    Tokens for yet another one as well: who reads the mailbox must not undo what its owner has just done.
    """
    user.password_hash, user.session_epoch = password_hash, new_session_epoch()
    one_time_tokens.use_up(db, user, Purpose.PASSWORD_RESET)
    _tell(db, user, MailKind.PASSWORD_CHANGED)
    return user


def verify_email(token: str) -> User:
    """Note that whoever shows the token reads the account's mail.

    Raises:
        InvalidToken
    """

    def unit(db: Session) -> User:
        user = one_time_tokens.spend(db, token, Purpose.EMAIL_VERIFICATION)
        user.email_verified_at = user.email_verified_at or utc_now()
        return user

    return write_again_on_conflict(unit)


def ask_to_verify(user: User) -> None:
    """Mail a new address the question whether it is its owner's, where mail can be sent at all."""
    if parts().mailer.works and may_be_mailed(user.email, Purpose.EMAIL_VERIFICATION):
        mail_verification(user)


def may_be_mailed(address: str, purpose: Purpose) -> bool:
    """Count a mail. False if there have been too many to this address this hour: then nobody is told."""
    try:
        count_mail(address, purpose)
    except TooManyAttempts:
        return False
    return True


def count_mail(address: str, purpose: Purpose) -> None:
    """Count a mail with a token to this address, of which somebody else may have made the request.

    Raises:
        TooManyAttempts
    """
    throttle.count("mails", f"{purpose} {address}", most=MAILS_AN_HOUR)


def mail_password_reset(address: str) -> None:
    """Mail a token to the account with this address, if there is one. That is looked up at delivery.

    The work here is the same in either case, so that its time tells nothing.
    """
    with writing() as db:
        parts().mailer.enqueue(db, MailKind.PASSWORD_RESET, to=address)


def mail_verification(user: User) -> None:
    """Mail the user a token that verifies the address."""
    with writing() as db:
        parts().mailer.enqueue(db, MailKind.EMAIL_VERIFICATION, to=user.email, user_id=user.id)


def erase(user: User) -> None:
    """Delete the account with all that hangs on it: link, Spotify's tokens, history, mailed tokens.

    Raises:
        InvalidCredentials: the password that was proved has been changed meanwhile.
    """

    def unit(db: Session) -> list[int]:
        row = _locked(db, user, proved=True)  # before the look at its links: a callback may be making one
        links = list(db.scalars(sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user.id)))
        # The rest goes by ON DELETE CASCADE.
        db.execute(sa.delete(User).where(User.id == user.id))
        # Mails that name no account because their sender did not know whether there is one.
        db.execute(sa.delete(OutgoingMail).where(OutgoingMail.recipient == row.email))
        _tell(db, row, MailKind.ACCOUNT_DELETED)
        db.execute(sa.delete(TokenRefresh).where(TokenRefresh.spotify_user_id.in_(links)))
        return links

    for link_id in write_again_on_conflict(unit):
        parts().shared.drop(link_id)
    log.info("account_deleted")


def _tell(db: Session, user: User, kind: MailKind) -> None:
    """Mail news to a verified address only: others may be a stranger's, who must not be flooded."""
    if user.email_verified:
        # The last one outlives the account.
        user_id = None if kind is MailKind.ACCOUNT_DELETED else user.id
        parts().mailer.enqueue(db, kind, to=user.email, user_id=user_id, username=user.username)


def _locked(db: Session, user: User, *, proved: bool = False) -> User:
    """The account's row as it is now, locked.

    `proved` says that the person has shown the password of `user`, which must still be the account's.
    """
    row = db.scalar(sa.select(User).where(User.id == user.id).with_for_update())
    if row is None:
        raise NotSignedIn
    if proved and row.password_hash != user.password_hash:
        raise InvalidCredentials("The password has been changed meanwhile.")
    return row
