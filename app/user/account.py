"""What people do with their account: each a single transaction, after the password was proved."""

import logging

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth import email_tokens, passwords
from app.auth.registration import require_available
from app.errors import InvalidCredentials, NotSignedIn
from app.infra.clock import utc_now
from app.infra.database import reading, run_in_transaction
from app.models import MailKind, OutgoingMail, Purpose, SpotifyUser, TokenRefresh, User, normalization
from app.services import services
from app.spotify import connections
from app.user import email_change
from app.user.notifications import ask_to_verify, tell

log = logging.getLogger(__name__)


def change_profile(user: User, *, username: str | None, email: str | None) -> User:
    """Give the account another name or address, each only if it is given: another tab may change the other.

    `email` is as it was entered.

    Raises:
        UsernameTaken, EmailTaken
        InvalidCredentials: the password that was proved for the address has been changed meanwhile.
    """
    is_new = email is not None and user.email not in normalization.spellings(email)

    def unit(db: Session) -> User:
        row = _locked(db, user, proved=is_new)
        if username is not None and username != row.username:
            require_available(db, username=username, except_for=row.id)
            row.username = username
            tell(db, row, MailKind.USERNAME_CHANGED)
        # Without the password, only a pending change may be canceled, if it has not taken effect meanwhile.
        if email is not None and (is_new or row.email in normalization.spellings(email)):
            email_change.request(db, row, email)
        db.flush()
        return row

    changed = run_in_transaction(unit)
    if username is not None:
        log.info("username_changed")
    if is_new:
        if changed.pending_email is None:
            log.info("email_changed")
        else:
            log.info("email_change_requested")
        ask_to_verify(changed)
    return changed


def change_password(user: User, new_password: str) -> User:
    """Store a new password; every session from before it is over.

    Raises:
        InvalidCredentials: the password that was proved has been changed meanwhile.
        ValidationError: the new one is too easy to guess.
    """
    passwords.validate_strength(new_password, field="new_password", username=user.username, email=user.email)
    with passwords.hashing_slot():
        password_hash = passwords.hash_password(new_password)

    changed = run_in_transaction(
        lambda db: _store_password(db, _locked(db, user, proved=True), password_hash)
    )
    log.info("password_changed")
    return changed


def reset_password(token: str, password: str) -> User:
    """Store a new password with the token from the mail, which also verifies the address.

    Raises:
        InvalidToken
        ValidationError: the password is too easy to guess. The token remains valid.
    """
    purpose = Purpose.PASSWORD_RESET
    with reading() as db:
        owner = email_tokens.owner_of(db, token, purpose)
    passwords.validate_strength(password, field="password", username=owner.username, email=owner.email)
    with passwords.hashing_slot():
        password_hash = passwords.hash_password(password)

    def unit(db: Session) -> tuple[User, list[int]]:
        user, _ = email_tokens.redeem(db, token, purpose)
        # Someone else may have registered with this address, and connected their own Spotify account.
        dropped = [] if user.email_verified else connections.delete_of_user(db, user.id)
        user.email_verified_at = user.email_verified_at or utc_now()
        _store_password(db, user, password_hash)
        return user, dropped

    user, dropped = run_in_transaction(unit)
    services().connections.forget_deleted(dropped)
    log.info("password_reset", extra={"account": user.id})
    return user


def _store_password(db: Session, user: User, password_hash: str) -> User:
    """Put a new password's hash into a locked row, and end what was begun with the old one.

    That includes tokens for another password and a pending change of address: someone who reads the
    mailbox, or who knew the old password, must not undo what the owner has just done.
    """
    user.password_hash = password_hash
    user.end_sessions()
    email_tokens.revoke(db, user, Purpose.PASSWORD_RESET)
    email_change.forget_pending(db, user)
    tell(db, user, MailKind.PASSWORD_CHANGED)
    return user


def delete_account(user: User) -> None:
    """Delete the account with everything that belongs to it: connection, tokens, history, mailed tokens.

    Raises:
        InvalidCredentials: the password that was proved has been changed meanwhile.
    """

    def unit(db: Session) -> list[int]:
        row = _locked(db, user, proved=True)  # before the look at its links: a callback may be making one
        link_ids = list(db.scalars(sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user.id)))
        # The person who changed the address may not be its owner.
        told = email_tokens.restorable(db, row)
        # The rest goes by ON DELETE CASCADE.
        db.execute(sa.delete(User).where(User.id == user.id))
        # Mails that name no account because their sender did not know whether there is one.
        db.execute(
            sa.delete(OutgoingMail).where(OutgoingMail.recipient.in_(normalization.spellings(row.email)))
        )
        tell(db, row, MailKind.ACCOUNT_DELETED)
        for address in told:
            services().mailer.enqueue(db, MailKind.ACCOUNT_DELETED, to=address)
        db.execute(sa.delete(TokenRefresh).where(TokenRefresh.spotify_user_id.in_(link_ids)))
        return link_ids

    for link_id in run_in_transaction(unit):
        services().response_cache.drop(link_id)
    log.info("account_deleted")


def _locked(db: Session, user: User, *, proved: bool = False) -> User:
    """The account's row as it is now, locked.

    `proved` says that the person has shown the password of `user`, which must still be the account's.
    """
    row = db.scalar(sa.select(User).where(User.id == user.id).with_for_update())
    if row is None or row.disabled:
        raise NotSignedIn
    if proved and row.password_hash != user.password_hash:
        raise InvalidCredentials("The password has just been changed. Sign in again with the new one.")
    return row
