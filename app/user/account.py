"""Changes and deletes accounts."""

import logging

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth import email_tokens, lookup, personal_access_tokens
from app.auth.email_change import EmailChanges
from app.auth.notifications import Notifications
from app.auth.registration import require_available
from app.infra.database import run_in_transaction
from app.models import MailKind, OutgoingMail, TokenRefresh, User, normalization
from app.spotify.connections import Connections, delete_of_user

log = logging.getLogger(__name__)


class UserAccounts:
    """Changes profiles and deletes accounts, each in a single transaction."""

    def __init__(
        self, notifications: Notifications, email_changes: EmailChanges, connections: Connections
    ) -> None:
        self._notifications = notifications
        self._email_changes = email_changes
        self._connections = connections

    def change_profile(self, user: User, *, username: str | None, email: str | None) -> User:
        """Change the username or the email address. None keeps the value, which another tab may be changing.

        Args:
            user: The signed-in user, who has confirmed the password if the address is new.
            username: In its normal form.
            email: As it was entered.

        Raises:
            UsernameTaken: Another account has the username.
            EmailTaken: Another account has the address, or can restore it.
            InvalidCredentials: The password has been changed since it was confirmed.
            NotSignedIn: The account has been deleted or disabled since.
        """
        is_new_email = email is not None and user.email not in normalization.spellings(email)

        def work(db: Session) -> User:
            row = lookup.lock_confirmed(db, user) if is_new_email else lookup.lock(db, user)
            if username is not None and username != row.username:
                require_available(db, username=username, except_for=row.id)
                row.username = username
                self._notifications.notify(db, row, MailKind.USERNAME_CHANGED)
            # Without the password, `email` may only be the current address, which cancels a pending change.
            if email is not None and (is_new_email or row.email in normalization.spellings(email)):
                self._email_changes.request(db, row, email)
            db.flush()
            return row

        changed = run_in_transaction(work)
        if username is not None:
            log.info("username_changed")
        if is_new_email:
            if changed.pending_email is None:
                log.info("email_changed")
            else:
                log.info("email_change_requested")
            self._notifications.request_verification(changed)
        return changed

    def end_sessions(self, user: User) -> User:
        """End all sessions and revoke all personal access tokens of a user who has confirmed who they are.

        Returns the user with the epoch for a new session.

        Raises:
            InvalidCredentials: The password has been changed since it was confirmed.
            NotSignedIn: The account has been deleted or disabled since.
        """

        def work(db: Session) -> User:
            row = lookup.lock_confirmed(db, user)
            row.end_sessions()
            personal_access_tokens.revoke_all(db, row.id)
            db.flush()
            return row

        return run_in_transaction(work)

    def delete(self, user: User) -> None:
        """Delete an account and everything that belongs to it: connection, tokens, history, and emails.

        Raises:
            InvalidCredentials: The password has been changed since it was confirmed.
            NotSignedIn: The account has been deleted or disabled since.
        """

        def work(db: Session) -> list[int]:
            # Lock the user before reading the connections: a callback may be adding one.
            row = lookup.lock_confirmed(db, user)
            # The person who changed the address may not be the owner.
            earlier_addresses = email_tokens.restorable_addresses(db, row)
            spotify_user_ids = delete_of_user(db, row.id)
            db.execute(sa.delete(TokenRefresh).where(TokenRefresh.spotify_user_id.in_(spotify_user_ids)))
            # Some have no user_id, because storing them must not depend on whether there is an account.
            is_theirs = OutgoingMail.recipient.in_(normalization.spellings(row.email))
            db.execute(sa.delete(OutgoingMail).where(is_theirs))
            # The database deletes everything else too: ON DELETE CASCADE.
            db.execute(sa.delete(User).where(User.id == row.id))
            self._notifications.notify(db, row, MailKind.ACCOUNT_DELETED)
            for address in earlier_addresses:
                self._notifications.notify_address(db, address, MailKind.ACCOUNT_DELETED)
            return spotify_user_ids

        self._connections.forget_deleted(run_in_transaction(work))
        log.info("account_deleted")
