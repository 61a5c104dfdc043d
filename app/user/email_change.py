"""Changing the email address. A verified one is replaced only by another verified one, and can be restored.

An address that was never verified proves nothing, so it is replaced at once.
"""

import logging

from sqlalchemy.orm import Session

from app.auth import email_tokens, passwords
from app.auth.registration import require_available
from app.infra.clock import utc_now
from app.infra.database import run_in_transaction
from app.models import MailKind, Purpose, User, normalization
from app.services import services
from app.spotify import connections
from app.user.notifications import tell

log = logging.getLogger(__name__)


def request(db: Session, user: User, entered: str) -> None:
    """Change the address of an account whose row is locked, or begin to.

    The current address, in any spelling, cancels a change that is pending.

    Raises:
        EmailTaken
    """
    forget_pending(db, user)
    if user.email in normalization.spellings(entered):
        return
    require_available(db, email=entered, except_for=user.id)
    if user.email_verified:
        user.set_pending_email(entered)
        _tell_old_address(db, user, MailKind.EMAIL_CHANGE_REQUESTED)
    else:
        user.set_email(entered, verified_at=None)


def forget_pending(db: Session, user: User) -> None:
    """Cancel a pending change. The link that was mailed to the new address ends."""
    if user.pending_email is not None:
        user.set_pending_email(None)
        email_tokens.revoke(db, user, Purpose.EMAIL_VERIFICATION)


def verify(token: str) -> None:
    """Verify the address that this token was mailed to. A pending one replaces the current one.

    Raises:
        InvalidToken
        EmailTaken: another account has it by now. The token remains valid.
    """

    def unit(db: Session) -> tuple[User, bool]:
        user, spent = email_tokens.redeem(db, token, Purpose.EMAIL_VERIFICATION)
        replaces = spent.email == user.pending_email
        if replaces:
            require_available(db, email=spent.email_address, except_for=user.id)
            # An earlier owner who is back must not lose the address again to the one who had it meanwhile.
            if email_tokens.revoke_since(db, user, spent.email) is None:
                _tell_old_address(db, user, MailKind.EMAIL_CHANGED)
            user.set_email(spent.email_address, verified_at=utc_now())
            email_tokens.revoke(db, user, Purpose.PASSWORD_RESET)  # mailed to the old address
        else:
            user.email_verified_at = user.email_verified_at or utc_now()
        email_tokens.revoke(db, user, Purpose.EMAIL_VERIFICATION)
        db.flush()
        return user, replaces

    user, replaced = run_in_transaction(unit)
    log.info("email_verified", extra={"account": user.id})
    if replaced:
        log.info("email_changed", extra={"account": user.id})


def undo(token: str) -> User:
    """Restore the address that this token was mailed to, and shut out the person who changed it.

    All sessions end, and the password no longer works: the owner chooses a new one by mail. Links to undo
    an earlier change remain valid, so that the person who made this one cannot undo the owner's undo.
    A Spotify account that was connected while another address was in effect may be another person's: that
    connection is deleted.

    Raises:
        InvalidToken
        EmailTaken: another account has that address by now.
    """

    def unit(db: Session) -> tuple[User, list[int]]:
        user, spent = email_tokens.redeem(db, token, Purpose.EMAIL_CHANGE)
        require_available(db, email=spent.email_address, except_for=user.id)
        was_replaced = user.email != spent.email
        user.set_email(spent.email_address, verified_at=utc_now())
        user.password_hash = passwords.UNUSABLE
        user.end_sessions()
        since = email_tokens.revoke_since(db, user, spent.email)
        deleted = connections.delete_of_user(db, user.id, since=since) if was_replaced else []
        services().mailer.enqueue(db, MailKind.EMAIL_CHANGE_UNDONE, to=user.mail_to, user_id=user.id)
        db.flush()
        return user, deleted

    user, deleted = run_in_transaction(unit)
    services().connections.forget_deleted(deleted)
    log.warning("email_change_undone", extra={"account": user.id})
    return user


def set_by_operator(db: Session, user: User, entered: str) -> None:
    """Replace the address of an account whose row is locked, without the owner's password or mailbox.

    Everything that was mailed before ends, including links to undo a change: an operator steps in where
    the owner has lost the old mailbox. Another spelling of the current address remains verified.

    Raises:
        EmailTaken
    """
    require_available(db, email=entered, except_for=user.id)
    is_new = user.email not in normalization.spellings(entered)
    if is_new:
        tell(db, user, MailKind.EMAIL_SET_BY_OPERATOR)
    user.set_email(entered, verified_at=None if is_new else user.email_verified_at)
    email_tokens.revoke_all(db, user)
    db.flush()


def _tell_old_address(db: Session, user: User, kind: MailKind) -> None:
    if user.email_verified:
        email_tokens.reserve_address(db, user)
        tell(db, user, kind)
