"""Changes email addresses.

An unverified address is replaced at once. A verified address is replaced when the new one is verified, and
can be restored for seven days.
"""

import logging

from sqlalchemy.orm import Session

from app.auth import email_tokens, personal_access_tokens
from app.auth.notifications import Notifications
from app.auth.registration import require_available
from app.infra.clock import utc_now
from app.infra.database import run_in_transaction
from app.models import MailKind, Purpose, User, normalization
from app.models.user import UNUSABLE_HASH
from app.spotify.app_registration.registration import delete_made_since
from app.spotify.connections import Connections
from app.spotify.ways_in import SpotifyWayIn

log = logging.getLogger(__name__)


class EmailChanges:
    """Requests, completes, and undoes changes of email addresses."""

    def __init__(self, notifications: Notifications, connections: Connections, way_in: SpotifyWayIn) -> None:
        self._notifications = notifications
        self._connections = connections
        self._way_in = way_in

    def request(self, db: Session, user: User, entered: str) -> None:
        """Change the address of a user whose row is locked, or start to.

        The current address, in any spelling, cancels a pending change.

        Raises:
            EmailTaken: Another account has the address, or can restore it.
        """
        cancel_pending(db, user)
        if user.email in normalization.spellings(entered):
            return
        require_available(db, email=entered, except_for=user.id)
        if user.email_verified:
            user.set_pending_email(entered)
            self._offer_undo(db, user, MailKind.EMAIL_CHANGE_REQUESTED)
        else:
            user.set_email(entered, verified_at=None)

    def verify(self, token: str) -> None:
        """Verify the address that this token was sent to. A pending address replaces the current one.

        Raises:
            InvalidToken: See `email_tokens.redeem`.
            EmailTaken: Another account has the address by now. The token stays valid.
        """

        def work(db: Session) -> tuple[User, bool]:
            user, sent = email_tokens.redeem(db, token, Purpose.EMAIL_VERIFICATION)
            replaces = sent.email == user.pending_email
            if replaces:
                self._replace_email(db, user, sent)
            else:
                user.email_verified_at = user.email_verified_at or utc_now()
            email_tokens.revoke(db, user, Purpose.EMAIL_VERIFICATION)
            db.flush()
            return user, replaces

        user, replaced = run_in_transaction(work)
        log.info("email_verified", extra={"account": user.id})
        if replaced:
            log.info("email_changed", extra={"account": user.id})

    def undo(self, token: str) -> User:
        """Restore the address that this token was sent to, and lock out the person who changed it.

        All sessions and personal access tokens end, and the password stops working: the owner chooses a new
        one by email. Spotify signs no one in to the account until the owner connects it again. Links that
        undo an earlier change stay valid, so that the person who made this one cannot revert the undo. A
        Spotify account that was connected while another address was in effect may be someone else's, so that
        connection is deleted, and so is a Spotify application that was registered.

        Raises:
            InvalidToken: See `email_tokens.redeem`.
            EmailTaken: Another account has that address by now.
        """

        def work(db: Session) -> tuple[User, list[int]]:
            user, sent = email_tokens.redeem(db, token, Purpose.EMAIL_CHANGE)
            require_available(db, email=sent.entered, except_for=user.id)
            was_replaced = user.email != sent.email
            user.set_email(sent.entered, verified_at=utc_now())
            user.password_hash = UNUSABLE_HASH
            user.end_sessions()
            personal_access_tokens.revoke_all(db, user.id)
            since = email_tokens.revoke_since(db, user, sent.email)
            self._way_in.remove(db, user.id)
            deleted = delete_made_since(db, user.id, since) if was_replaced else []
            self._notifications.notify(db, user, MailKind.EMAIL_CHANGE_UNDONE)
            db.flush()
            return user, deleted

        user, deleted = run_in_transaction(work)
        self._connections.forget_deleted(deleted)
        log.warning("email_change_undone", extra={"account": user.id})
        return user

    def set_by_operator(self, db: Session, user: User, entered: str) -> None:
        """Replace the address of a user whose row is locked, without their password or mailbox.

        Operators do this when the owner has lost the old mailbox, so all links that were emailed before stop
        working, including those that undo a change. With a new address, Spotify signs no one in until the
        owner connects it again: it may be a stranger's. Another spelling of the current one stays verified.

        Raises:
            EmailTaken: Another account has the address, or can restore it.
        """
        require_available(db, email=entered, except_for=user.id)
        is_new = user.email not in normalization.spellings(entered)
        if is_new:
            self._notifications.notify(db, user, MailKind.EMAIL_SET_BY_OPERATOR)
        user.set_email(entered, verified_at=None if is_new else user.email_verified_at)
        if is_new:
            self._way_in.remove(db, user.id)
        email_tokens.revoke_all(db, user)
        db.flush()

    def _replace_email(self, db: Session, user: User, sent: email_tokens.SentTo) -> None:
        require_available(db, email=sent.entered, except_for=user.id)
        # The owner may be restoring an earlier address. The one it replaces must not get a link to undo that.
        if email_tokens.revoke_since(db, user, sent.email) is None:
            self._offer_undo(db, user, MailKind.EMAIL_CHANGED)
        user.set_email(sent.entered, verified_at=utc_now())
        email_tokens.revoke(db, user, Purpose.PASSWORD_RESET)  # sent to the old address

    def _offer_undo(self, db: Session, user: User, kind: MailKind) -> None:
        """Reserve the current address if it is verified, and email it a link that undoes the change."""
        if user.email_verified:
            email_tokens.reserve_address(db, user)
            self._notifications.notify(db, user, kind)


def cancel_pending(db: Session, user: User) -> None:
    """Cancel a pending change, and revoke the link that was sent to the new address."""
    if user.pending_email is not None:
        user.set_pending_email(None)
        email_tokens.revoke(db, user, Purpose.EMAIL_VERIFICATION)
